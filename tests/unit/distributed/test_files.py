import errno
import os
import stat
from pathlib import Path

import pytest

from distributed.files import encode_json, remove_folder, sha256_of, write_atomically, write_json


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    os.chmod(file, 0o640)
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_json_is_strict_and_repeatable(tmp_path: Path) -> None:
    value = {"b": 0.1, "a": [1, None, "\u00e9"]}
    write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_bytes() == encode_json(value)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"x": bad})
    assert (tmp_path / "x.json").read_bytes() == encode_json(value)


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == want


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    for name in ("step", ".step.removed"):  # the second: what a crash has left
        (tmp_path / name / "inside").mkdir(parents=True)
    remove_folder(folder)
    remove_folder(folder)  # nothing there: nothing to do
    assert list(tmp_path.iterdir()) == []
