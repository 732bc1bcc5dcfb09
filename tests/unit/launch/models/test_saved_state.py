"""States that no run has written, under a seal that is right: refused clearly, or shown."""

import copy
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from distributed.checkpoint.manifest import MANIFEST, BadCheckpoint, seal
from distributed.checkpoint.reading import Checkpoint
from distributed.errors import BadInput
from launch.models.inspect import describe, render
from training.folder import RunFolder
from training.start import resume_start

MakeRun = Callable[..., RunFolder]
values = st.sampled_from(
    [None, True, -1, 0, 2**70, 0.5, "", "x", "50", [], [1], {}, {"a": 1}, {"a": {"b": []}}]
)


def places(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_state_is_shown_and_restored_or_refused(make_run: MakeRun, data: st.DataObject) -> None:
    path = RunFolder(make_run().path).checkpoints / "step-00000010"
    if not path.exists():
        make_run(10)
    file = path / MANIFEST
    original = file.read_bytes()
    manifest = json.loads(original)
    manifest.pop("sha256")
    for _ in range(data.draw(st.integers(1, 2))):
        state = copy.deepcopy(manifest["state"])
        *parents, key = data.draw(st.sampled_from(sorted(places(state))))
        inside = state
        for parent in parents:
            inside = inside[parent]
        if data.draw(st.booleans()):
            inside[key] = data.draw(values)
        else:
            del inside[key]
        manifest["state"] = state
    try:
        file.write_bytes(seal(manifest))
        try:
            Console(file=io.StringIO()).print(render(describe(path)))
        except BadInput as error:
            assert str(path) in str(error)
        try:
            start = resume_start(Checkpoint(path))
            assert start.state.step == 10
        except BadInput as error:
            assert str(path) in str(error)
    finally:
        file.write_bytes(original)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda s: s.pop("train"), "state.train.step"),
        (lambda s: s.update(train=[1]), "state.train"),
        (lambda s: s["train"].update(step="10"), "state.train.step"),
        (lambda s: s["train"].update(step=9), "state.train.step"),
        (lambda s: s.update(sparsity=3), "state.sparsity"),
        (lambda s: s.update(sparsity=None), "state.sparsity"),
        (lambda s: s["sparsity"].update(digest=5), "state.sparsity.digest"),
        (lambda s: s["sparsity"].update(pruned={"a": "b"}), "state.sparsity.pruned.a"),
    ],
)
def test_a_resume_names_the_field(
    make_run: MakeRun, change: Callable[[dict[str, Any]], Any], where: str
) -> None:
    path = make_run(10).checkpoints / "step-00000010"
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest.pop("sha256")
    change(manifest["state"])
    (path / MANIFEST).write_bytes(seal(manifest))
    with pytest.raises(BadCheckpoint, match=f"{MANIFEST} is damaged at {where}$"):
        resume_start(Checkpoint(path))
