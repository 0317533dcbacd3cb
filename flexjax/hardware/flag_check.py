"""Asks the compiler itself whether it takes the flags of a set, before JAX starts with them.

In processes of their own, because XLA ends the process in which it meets a flag that it does not know. CPU and GPU
share XLA's own list of flags, whatever chip is present; libtpu answers for TPUs, and needs none to be present either.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from flexjax.hardware.xla_flags import Flag, FlagSet
from flexjax.refusal import Refusal

_UNKNOWN = "the compiler does not know it"
_VALUE = "the compiler knows it but does not take this value"
_TPU_VARIABLE = "LIBTPU_INIT_ARGS"
# A topology that can be described anywhere; libtpu has one list of flags for all its chips.
_TPU_TOPOLOGY = "v5e:2x2"
_TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # It compiles only, and takes no chip from another process.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def check(flag_set: FlagSet) -> None:
    """Refusal that names every flag of the set that the compiler refuses, each with why."""
    if flag_set.variable == _TPU_VARIABLE and not has_libtpu():
        raise Refusal(
            f"The flags of {flag_set.name!r} are for the TPU's compiler, libtpu, which is not installed, so nothing "
            "would read them. Install the extra 'tpu' on a TPU or 'virtual' elsewhere, or choose another set."
        )
    faults = refused(flag_set)
    if faults:
        listed = "; ".join(f"--{name}: {why}" for name, why in faults.items())
        raise Refusal(
            f"The installed compiler refuses {len(faults)} of the {len(flag_set.flags)} flags of {flag_set.name!r}: "
            f"{listed}. Flags come and go with compiler versions: mend the set, or choose another."
        )


def refused(flag_set: FlagSet) -> Mapping[str, str]:
    """Names of the flags that the compiler refuses, each with why; empty when it takes the whole set."""
    if not flag_set.flags:
        return {}
    if flag_set.variable == _TPU_VARIABLE:
        return _refused_by_libtpu(flag_set.flags)
    if not _refusal_of_xla(flag_set.flags):
        return {}
    # Only the first flag at fault is sure to be named, so each is asked for alone.
    return {flag.name: why for flag in flag_set.flags if (why := _refusal_of_xla([flag]))}


def has_libtpu() -> bool:
    return find_spec("libtpu") is not None


def _refusal_of_xla(flags: Sequence[Flag]) -> str:
    """Why XLA refuses these flags, "" if it does not; it reads XLA_FLAGS when compile options are first made."""
    done = subprocess.run(
        [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"],
        env={**os.environ, "XLA_FLAGS": " ".join(map(str, flags))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    if "Unknown flag" in done.stderr:
        return _UNKNOWN
    if "Flag parsing failed" in done.stderr:
        return _VALUE
    raise RuntimeError(f"XLA could not be asked about {' '.join(map(str, flags))}: {done.stderr.strip()[-500:]}")


def _refused_by_libtpu(flags: Sequence[Flag]) -> Mapping[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in (_TPU_VARIABLE, "XLA_FLAGS")}
    with tempfile.TemporaryDirectory() as folder:  # Dump flags write there.
        done = subprocess.run(
            [sys.executable, "-m", "flexjax.hardware.flag_check"],
            input=json.dumps({flag.name: flag.option for flag in flags}),
            env={**environment, **_TPU_ENVIRONMENT},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"libtpu could not be asked about its flags: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer_for_libtpu() -> None:
    """Reads {flag: value} as JSON from stdin, and writes {refused flag: why}."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    device = topologies.get_topology_desc(platform="tpu", topology_name=_TPU_TOPOLOGY).devices[0]
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=SingleDeviceSharding(device))
    lowered = jax.jit(lambda x: x + 1).lower(x)

    def refusal(options: dict[str, bool | int | float | str]) -> str:
        try:
            lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" in str(error):
                return _UNKNOWN
            if "While setting option" in str(error) or "Failed to parse" in str(error):
                return _VALUE
            raise
        return ""

    flags = json.load(sys.stdin)
    faults = {name: why for name, value in flags.items() if (why := refusal({name: value}))} if refusal(flags) else {}
    print(json.dumps(faults))


if __name__ == "__main__":
    _answer_for_libtpu()
