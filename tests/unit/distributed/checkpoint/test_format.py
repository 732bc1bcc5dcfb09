"""What is on disk: a checkpoint is read as it was written, or refused with the file's name.

The ranks are threads that hold pieces of known tensors; real engines write in tests/multiprocess.
"""

import copy
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from distributed.checkpoint.manifest import MANIFEST, BadCheckpoint, seal
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, find_newest, list_steps
from distributed.checkpoint.retention import remove_old
from distributed.config import CheckpointConfig
from distributed.files import sha256_of
from tests.unit.distributed.conftest import NUMELS, STATE, STEP, masks, tensors, write

KEEP_ONE = CheckpointConfig(keep_last=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("template"))


@pytest.fixture
def written(template: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(template, tmp_path / template.name))


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text())  # type: ignore[no-any-return]


def write_sealed(path: Path, manifest: dict[str, Any]) -> None:
    """As a writer with a bug would, or somebody who forges one: the seal is right."""
    manifest.pop("sha256", None)
    (path / MANIFEST).write_bytes(seal(manifest))


def is_as_written(checkpoint: Checkpoint) -> bool:
    read = checkpoint.reader(MASTER)
    return checkpoint.numels == NUMELS and all(
        torch.equal(read(name, 0, values.numel()), values) for name, values in tensors().items()
    )


# Reading.


@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_any_range_is_pieced_together(tmp_path: Path, world_size: int) -> None:
    checkpoint = Checkpoint(write(tmp_path, world_size=world_size))
    assert checkpoint.kinds == ["exp_avg", MASK, MASTER]
    assert (checkpoint.step, checkpoint.optimizer_steps) == (STEP, STEP - 1)
    assert checkpoint.state == STATE and is_as_written(checkpoint)
    master, moment, mask = (checkpoint.reader(k) for k in (MASTER, "exp_avg", MASK))
    name, weights = "encoder.weight", tensors()["encoder.weight"]
    for start, length in ((0, 101), (0, 0), (13, 1), (11, 64), (30, 71), (100, 1)):
        there = slice(start, start + length)
        assert torch.equal(master(name, start, length), weights[there])
        assert torch.equal(moment(name, start, length), weights[there] * 0.5)
        assert torch.equal(mask(name, start, length), masks()[name][there])
    with pytest.raises(KeyError):
        mask("encoder.bias", 0, 7)


def test_nothing_but_the_files_is_left(written: Path) -> None:
    names = sorted(path.name for path in written.iterdir())
    assert names == [MANIFEST, *(f"rank-0000{rank}.safetensors" for rank in range(3))]
    assert sorted(manifest_of(written)["files"]) == names[1:]


# Damaged manifests.


def read(path: Path) -> Checkpoint | None:
    """The checkpoint, or None if it was refused properly: any other exception is a failure."""
    try:
        return Checkpoint(path)
    except BadCheckpoint as error:
        assert str(path) in str(error)
        return None


def test_a_truncated_manifest_is_refused(written: Path) -> None:
    whole = (written / MANIFEST).read_bytes()
    for length in range(len(whole)):
        (written / MANIFEST).write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint, match=MANIFEST):
            Checkpoint(written)


def test_every_flipped_bit_is_refused(written: Path) -> None:
    whole = (written / MANIFEST).read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            (written / MANIFEST).write_bytes(flipped)
            assert read(written) is None, (at, bit)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["rank-00001.safetensors", "../x", "", ".", "a\0b", "\ud800", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below `value`."""
    inside = value.items() if isinstance(value, dict) else ()
    for key, inner in inside:
        yield (*at, key)
        yield from places(inner, (*at, key))


def mutate(manifest: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """Replace, remove, rename or add one value somewhere."""
    changed = copy.deepcopy(manifest)
    *parents, key = data.draw(st.sampled_from(list(places(manifest))))
    inside = changed
    for parent in parents:
        inside = inside[parent]
    how = data.draw(st.sampled_from(["replace", "remove", "rename", "add", "number"]))
    if how == "replace":
        inside[key] = data.draw(json_values)
    elif how == "number":
        inside[key] = data.draw(st.sampled_from([-1, 0, 1, 2**40, 10**30, 50.0, True, "50"]))
    elif how == "add":
        inside[data.draw(st.text(max_size=8))] = data.draw(json_values)
    else:
        value = inside.pop(key)
        if how == "rename":
            names = st.sampled_from(["../" + key, "/" + key, key + "\0", "x" * 300, "", ".."])
            inside[data.draw(names | st.text(max_size=8))] = value
    return changed


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_manifest_is_refused_or_leaves_the_weights(
    template: Path, data: st.DataObject
) -> None:
    """In place, then put back: the files beside it are only read."""
    original = (template / MANIFEST).read_bytes()
    changed = mutate(json.loads(original), data)
    if data.draw(st.booleans()):
        changed = mutate(changed, data)
    try:
        (template / MANIFEST).write_text(json.dumps(changed))
        assert changed == json.loads(original) or read(template) is None
        try:
            write_sealed(template, changed)
        except (ValueError, RecursionError):  # a NaN: no manifest can hold one
            return
        checkpoint = read(template)
        if checkpoint is not None and checkpoint.numels == NUMELS:
            assert is_as_written(checkpoint)
    finally:
        (template / MANIFEST).write_bytes(original)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b"NaN",
    ],
)
def test_a_manifest_that_is_something_else(written: Path, content: bytes) -> None:
    (written / MANIFEST).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=MANIFEST):
        Checkpoint(written)


Change = Callable[[dict[str, Any]], Any]
FIRST = "rank-00000.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="other"), "not a sparsebert manifest"),
        (lambda m: m.update(version=1), "format version 1"),
        (lambda m: m.pop("version"), "format version None"),
        (lambda m: m.pop("step"), "damaged at step"),
        (lambda m: m.update(step=-1), "damaged at step"),
        (lambda m: m.update(step=True), "damaged at step"),
        (lambda m: m.update(world_size="3"), "damaged at world_size"),
        (lambda m: m.update(optimizer_steps=1.0), "damaged at optimizer_steps"),
        (lambda m: m.update(parameters=list(NUMELS)), "damaged at parameters"),
        (lambda m: m["parameters"].update({"encoder.bias": None}), "damaged at parameters.enc"),
        (lambda m: m["parameters"].update({"encoder.bias": 8}), "7 of 8 of encoder.bias"),
        (lambda m: m["parameters"].update(more=1), "does not hold \\w+ of more"),
        (lambda m: m["parameters"].pop("encoder.bias"), "of None of encoder.bias"),
        (lambda m: m["files"].pop(FIRST), "does not continue"),
        (lambda m: m.update(files={}), "does not hold"),
        (lambda m: m["files"].update({FIRST: 7}), "damaged at files"),
        (lambda m: m["files"][FIRST].pop("sha256"), "damaged at files"),
        (lambda m: m["files"][FIRST].update(sha256="0" * 64), f"{FIRST} is damaged"),
        (lambda m: m["files"][FIRST].update(sha256="x"), "damaged at files"),
        (lambda m: m.update(step=51), "is of step 51"),
        (lambda m: m["files"][FIRST].update(bytes=1), f"{FIRST} has"),
        (lambda m: m["files"].update({"rank-00009.safetensors": m["files"][FIRST]}), "missing"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"][FIRST]}), "outside"),
        (lambda m: m.update(state=[]), "damaged at state"),
    ],
)
def test_each_damage_is_named(written: Path, change: Change, words: str) -> None:
    manifest = manifest_of(written)
    change(manifest)
    write_sealed(written, manifest)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        Checkpoint(written)
    assert str(written) in str(caught.value)


def test_what_a_later_release_adds_is_no_damage(written: Path) -> None:
    manifest = manifest_of(written)
    manifest["more"] = manifest["files"][FIRST]["more"] = [1]
    write_sealed(written, manifest)
    assert is_as_written(Checkpoint(written))


# Files whose checksum is right and whose content is not.


def replace_tensors(path: Path, change: Change) -> None:
    file = path / FIRST
    content = load_file(file)
    change(content)
    save_file(content, file)
    manifest = manifest_of(path)
    manifest["files"][FIRST] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    write_sealed(path, manifest)


BIAS = "master|encoder.bias|0|2"


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("master", torch.zeros(1)),
        ("", torch.zeros(1)),
        ("master|encoder.bias|0", torch.zeros(1)),
        ("master|encoder.bias|0|x", torch.zeros(1)),
        ("master|encoder.bias|-1|1", torch.zeros(1)),
        ("master|encoder.bias|0|" + "9" * 5000, torch.zeros(1)),
        ("master|encoder.bias|\u0660|2", torch.zeros(2)),
        ("|||", torch.zeros(1)),
        ("exp_avg_sq|encoder.bias|0|2", torch.zeros(3)),  # not as long as it says
        ("exp_avg_sq|encoder.bias|0|4", torch.zeros(2, 2)),
        ("exp_avg_sq|encoder.bias|0|2", torch.zeros(2, dtype=torch.int32)),
        ("keep_mask|encoder.bias|0|9", torch.zeros(1, dtype=torch.uint8)),
        ("keep_mask|encoder.bias|0|2", torch.zeros(1)),
        ("master|encoder.bias|1|2", torch.zeros(2)),  # overlaps
        ("master|unknown|0|2", torch.zeros(2)),
    ],
)
def test_malformed_tensors_are_refused(written: Path, key: str, tensor: torch.Tensor) -> None:
    replace_tensors(written, lambda content: content.update({key: tensor}))
    with pytest.raises(BadCheckpoint) as caught:
        Checkpoint(written)
    assert str(written) in str(caught.value)


def test_a_gap_is_refused(written: Path) -> None:
    replace_tensors(written, lambda content: content.pop(BIAS))
    with pytest.raises(BadCheckpoint, match=r"does not continue master of encoder\.bias at 0"):
        Checkpoint(written)


def test_a_file_that_is_no_safetensors(written: Path) -> None:
    file = written / FIRST
    for content in (b"", b"\x00" * 7, b"\xff" * 64, b"\x08" + b"\x00" * 7 + b"not json"):
        file.write_bytes(content)
        manifest = manifest_of(written)
        manifest["files"][FIRST] = {"bytes": len(content), "sha256": sha256_of(file)}
        write_sealed(written, manifest)
        with pytest.raises(BadCheckpoint, match=f"{FIRST} is not readable"):
            Checkpoint(written)


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_storage_that_fails_for_a_moment(
    written: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """It is asked again, and a whole checkpoint is not taken for a damaged one."""
    pauses: list[float] = []
    left = failures

    def read(file: Path) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(file)

    monkeypatch.setattr("distributed.checkpoint.reading.sha256_of", read)
    monkeypatch.setattr("distributed.checkpoint.manifest.time.sleep", pauses.append)
    if failures < 5:
        assert Checkpoint(written).step == STEP
    else:
        with pytest.raises(BadCheckpoint, match="Input/output error"):
            Checkpoint(written)
    assert len(pauses) == min(failures, 4)


def test_folders_and_links_in_the_place_of_files(written: Path, tmp_path: Path) -> None:
    (written / FIRST).unlink()
    (written / FIRST).mkdir()
    with pytest.raises(BadCheckpoint, match=f"{FIRST} is missing"):
        Checkpoint(written)
    (written / MANIFEST).unlink()
    (written / MANIFEST).mkdir()
    with pytest.raises(BadCheckpoint, match=f"{MANIFEST} is not readable"):
        Checkpoint(written)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadCheckpoint, match=MANIFEST):
        Checkpoint(tmp_path / "file")
    with pytest.raises(BadCheckpoint, match="not a checkpoint"):
        Checkpoint(tmp_path / "nothing")


# A folder of checkpoints.


def test_the_newest_good_one_wins_over_malformed_ones(template: Path, tmp_path: Path) -> None:
    for step in (10, 50, 60, 70):
        shutil.copytree(template, tmp_path / f"step-{step:08d}")
    (tmp_path / "step-00000070" / MANIFEST).write_text('{"format": "sparsebert-checkpoint"')
    manifest = manifest_of(template)
    manifest["files"] = None
    (tmp_path / "step-00000060" / MANIFEST).write_text(json.dumps(manifest))
    newest, refused = find_newest(tmp_path)
    assert newest is not None and newest.path.name == "step-00000050"
    assert ["00000070" in refused[0], "00000060" in refused[1], len(refused)] == [True, True, 2]


def test_other_folders_are_neither_listed_nor_removed(template: Path, tmp_path: Path) -> None:
    others = ["step-5", "step-000000050", "step-\u00b2", "step-", "step-0000005x", "mine"]
    for name in ["step-00000050", "step-00000060", "step-123456789", *others]:
        shutil.copytree(template, tmp_path / name)
    (tmp_path / "step-00000070").mkdir()  # never committed
    assert list_steps(tmp_path) == [50, 60, 123456789]
    remove_old(tmp_path, newest=123456789, config=KEEP_ONE, losses={})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["step-123456789", "step-00000070", *others])


def test_later_damaged_ones_take_no_place_from_good_ones(template: Path, tmp_path: Path) -> None:
    for step in (40, 50, 100):
        shutil.copytree(template, tmp_path / f"step-{step:08d}")
    remove_old(
        tmp_path, newest=50, config=KEEP_ONE, losses={}
    )  # the run went back from a damaged 100
    assert list_steps(tmp_path) == [50, 100]
