"""Joins this process to those of the other hosts, so that they compute on one set of devices."""

import os

from flexjax.refusal import Refusal

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Starts `jax.distributed`; afterwards `jax.devices()` are those of every process.

    Where JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, they
    say who this is; else JAX asks the cluster: Cloud TPU, GKE, Slurm, Open MPI. Refusal where neither tells.
    Must run before JAX starts a backend; waits until every process has come.
    """
    import jax  # Not above: the launcher sets XLA flags before JAX is imported.

    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if not given:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise Refusal(
                f"distributed=True joins several processes, and none of JAX's clusters (Cloud TPU, GKE, Slurm, Open "
                f"MPI) is here to say which ({error}). Set {ADDRESS}=host:port, {COUNT} and {INDEX}, as "
                "launch/nvidia_hosts.sh does."
            ) from error
        return
    if len(given) < 3 or ":" not in given[ADDRESS]:
        raise Refusal(
            f"{ADDRESS}=host:port, {COUNT} and {INDEX} say together which process of how many this is; got {given}."
        )
    count, index = _number(COUNT), _number(INDEX)
    if not 0 <= index < count:
        raise Refusal(f"{INDEX} counts from 0 to {COUNT} - 1; got {index} of {count}.")
    jax.distributed.initialize(given[ADDRESS], count, index)


def coordinator_host() -> str:
    """The host of process 0, by the name under which every process has reached it."""
    from jax._src.distributed import global_state  # JAX has no public question for this.

    address = global_state.coordinator_address
    assert address is not None, "jax.distributed has not been initialised"
    return address.rpartition(":")[0].strip("[]")


def _number(variable: str) -> int:
    value = os.environ[variable]
    if not value.isdecimal():
        raise Refusal(f"{variable} is a whole number; got {value!r}.")
    return int(value)
