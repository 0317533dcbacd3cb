"""Every face of an engine has what its callers rely on."""

import inspect

import pytest

from flexjax.engine import Engine, Replicas, ServesModel, TakesRequests
from flexjax.engine.processes.remote import Remote


@pytest.mark.parametrize(
    ("face", "protocol"),
    [(Engine, ServesModel), (Replicas, ServesModel), (Engine, TakesRequests), (Remote, TakesRequests)],
)
def test_a_face_has_every_member_and_takes_the_same_arguments(face, protocol):
    members = [name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_")]
    members += [name for base in protocol.__mro__ for name in inspect.get_annotations(base)]
    assert {"submit", "runners"} <= set(members)
    source = inspect.getsource(face)
    missing = [name for name in members if not hasattr(face, name) and f"self.{name}" not in source]
    assert not missing
    for name in members:
        stated = getattr(protocol, name, None)
        if inspect.isfunction(stated):
            names = list(inspect.signature(stated).parameters)
            assert list(inspect.signature(getattr(face, name)).parameters)[: len(names)] == names, name
