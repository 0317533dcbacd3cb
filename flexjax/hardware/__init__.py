"""Facts about the machine: chips, energy, memory, XLA flags and what it compiles.

Modules are imported by name (`from flexjax.hardware import chips`): `xla_flags` must be usable
before JAX is imported, so nothing is imported here.
"""
