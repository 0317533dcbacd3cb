"""The choice of a body, and the record of it."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from flexjax.kernels import registry


@pytest.fixture(autouse=True)
def _empty_record():
    registry.forget()
    yield
    registry.forget()


def refuse(x: int) -> int:
    raise NotImplementedError(f"{x} is too odd")


def double(x: int) -> int:
    return 2 * x


BODIES = {"picky": refuse, "plain": double, "other": lambda x: 2 * x}


def serve(x: int, body: str | None = None) -> int:
    return registry.serve("twice", BODIES, ("picky", "plain"), body, x)


def test_next_body_serves_and_the_reason_is_kept():
    assert serve(3) == 6
    (choice,) = registry.bodies_used()["twice"]
    assert choice == registry.Choice("plain", (("picky", "3 is too odd"),))


def test_same_choice_is_recorded_once():
    serve(3), serve(3)
    assert len(registry.bodies_used()["twice"]) == 1
    serve(3, body="other")
    assert [choice.body for choice in registry.bodies_used()["twice"]] == ["plain", "other"]


def test_asked_body_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NotImplementedError, match="picky: 3 is too odd"):
        serve(3, body="picky")
    with registry.use_bodies(twice="other"):
        serve(3)
    assert registry.bodies_used()["twice"][-1].body == "other"
    monkeypatch.setenv(registry.ENVIRONMENT, "once=plain, twice=picky")
    with pytest.raises(NotImplementedError, match="No body of twice"):
        serve(3)
    with registry.use_bodies(twice="plain"):  # Nearer than the environment.
        assert serve(3) == 6


def test_a_recording_holds_what_was_chosen_within_it_by_any_thread():
    serve(3, body="other")
    with registry.recording() as outer:
        serve(3)
        with registry.recording() as inner, ThreadPoolExecutor(1) as pool:
            pool.submit(serve, 3, "other").result()
    serve(3)
    bodies = lambda record: [choice.body for choice in record["twice"]]
    assert (bodies(outer), bodies(inner)) == (["plain", "other"], ["other"])
    assert [choice.body for choice in registry.bodies_used()["twice"]] == ["other", "plain"]


def test_threads_can_be_asked_for_the_same_bodies():
    with registry.use_bodies(twice="other"), ThreadPoolExecutor(2) as pool:
        carried = registry.for_threads(lambda x: registry.asked_for("twice"))
        assert list(pool.map(carried, range(4))) == ["other"] * 4
        assert pool.submit(registry.asked_for, "twice").result() is None
    assert carried(0) == "other" and registry.asked_for("twice") is None


def test_unknown_body_names_the_known():
    with pytest.raises(ValueError, match="picky, plain, other; 'fast'"):
        serve(3, body="fast")


def test_a_body_is_imported_when_it_is_called():
    body = registry.on_demand("math", "isqrt", package="math", extra="cuda")
    assert body(9) == 3


def test_a_body_without_its_package_refuses_and_names_the_extra():
    body = registry.on_demand("no.such.module", "isqrt", package="no_such_package", extra="cuda")
    with pytest.raises(
        NotImplementedError, match=r"no_such_package is not installed \(pip install 'flexjax\[cuda\]'\)"
    ):
        body(9)


def test_the_platform_is_that_of_the_mesh_in_use():
    assert registry.platform() == "cpu"
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)):
        assert registry.platform() == "tpu"


def test_a_kernel_is_refused_on_a_mesh_but_inside_shard_map():
    mesh = AbstractMesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def inside(x):
        registry.refuse_mesh()
        return x

    with jax.sharding.use_abstract_mesh(mesh):
        with pytest.raises(NotImplementedError, match="a mesh of 2 devices is in use"):
            registry.refuse_mesh()
        spec = PartitionSpec("x")
        jax.eval_shape(jax.shard_map(inside, in_specs=spec, out_specs=spec), jax.ShapeDtypeStruct((2,), jnp.float32))
    registry.refuse_mesh()
