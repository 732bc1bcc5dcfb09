"""Every file of a checkpoint, damaged in every way: always refused by name, never half used."""

import json
import random
import shutil
from pathlib import Path

import pytest

from distributed.checkpoint.manifest import MANIFEST, BadCheckpoint
from distributed.checkpoint.reading import Checkpoint, find_newest
from tests.unit.distributed.conftest import write

RANKS = tuple(f"rank-{rank:05d}.safetensors" for rank in range(3))
FILES = (MANIFEST, *RANKS)
FLIPS = 400  # of each file, at random places of a fixed seed


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 25 and 50 with other weights."""
    folder = tmp_path_factory.mktemp("templates")
    for step in (25, 50):
        write(folder, step=step, seed=step)
    return folder


@pytest.fixture
def folder(templates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates, tmp_path / "checkpoints"))


def assert_refused(folder: Path, file: str) -> None:
    """By that name; and an automatic resume takes the one before and says why."""
    newest = folder / "step-00000050"
    with pytest.raises(BadCheckpoint) as caught:
        Checkpoint(newest)
    assert str(newest / file) in str(caught.value)
    found, refused = find_newest(folder)
    assert found is not None and found.step == 25
    assert refused == [str(caught.value)]


@pytest.mark.parametrize("file", FILES)
def test_truncated(folder: Path, file: str) -> None:
    path = folder / "step-00000050" / file
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert_refused(folder, file)
    path.write_bytes(whole + b"\0")
    assert_refused(folder, file)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit(folder: Path, file: str) -> None:
    path = folder / "step-00000050" / file
    whole = path.read_bytes()
    places = random.Random(file)
    for _ in range(FLIPS):
        at, bit = places.randrange(len(whole)), places.randrange(8)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(BadCheckpoint, match=file):
            Checkpoint(path.parent)
    assert_refused(folder, file)


@pytest.mark.parametrize("file", RANKS)
def test_a_rank_file_that_is_gone(folder: Path, file: str) -> None:
    (folder / "step-00000050" / file).unlink()
    assert_refused(folder, file)


def test_a_manifest_that_is_gone(folder: Path) -> None:
    """Then it is no checkpoint: it is not listed, and an explicit path is refused."""
    (folder / "step-00000050" / MANIFEST).unlink()
    with pytest.raises(BadCheckpoint, match=MANIFEST):
        Checkpoint(folder / "step-00000050")
    found, refused = find_newest(folder)
    assert found is not None and (found.step, refused) == (25, [])


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_two_ranks_files_in_each_others_place(folder: Path, one: int, other: int) -> None:
    a, b = (folder / "step-00000050" / RANKS[i] for i in (one, other))
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])
    assert_refused(folder, a.name)


@pytest.mark.parametrize("file", FILES)
def test_an_older_file(folder: Path, file: str) -> None:
    shutil.copy(folder / "step-00000025" / file, folder / "step-00000050" / file)
    assert_refused(folder, file)


def test_an_older_checkpoint_under_a_newer_name(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000050")
    shutil.copytree(folder / "step-00000025", folder / "step-00000050")
    assert_refused(folder, MANIFEST)


def test_a_file_that_is_a_link_to_nowhere_or_a_folder(folder: Path) -> None:
    path = folder / "step-00000050" / RANKS[1]
    path.unlink()
    path.symlink_to("/nonexistent/file")
    assert_refused(folder, RANKS[1])
    path.unlink()
    path.mkdir()
    assert_refused(folder, RANKS[1])


def test_an_unreadable_part_of_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("distributed.checkpoint.reading.sha256_of", fail)
    with pytest.raises(BadCheckpoint, match="Input/output error") as caught:
        Checkpoint(folder / "step-00000050")
    assert RANKS[0] in str(caught.value)


def test_what_a_manifest_names_outside_is_not_touched(folder: Path, tmp_path: Path) -> None:
    """Even one whose seal is right: the name is refused before a file is looked at."""
    from distributed.checkpoint.manifest import seal

    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"mine")
    file = folder / "step-00000050" / MANIFEST
    for name in ("../../victim.safetensors", str(victim), "rank-00000.safetensors/../../x"):
        manifest = json.loads(file.read_bytes())
        manifest.pop("sha256")
        manifest["files"] = {name: {"bytes": 4, "sha256": "0" * 64}}
        file.write_bytes(seal(manifest))
        before = victim.stat()
        with pytest.raises(BadCheckpoint, match="outside its folder"):
            Checkpoint(folder / "step-00000050")
        assert victim.stat() == before
