"""A writer of an earlier start cannot change what a later one sees, whenever it wakes up."""

from pathlib import Path

import pytest

from distributed.checkpoint.fencing import Superseded, check_claim, claim, commit, part_folder

NAME = "step-00000010"


def write_part(folder: Path, token: str, content: str) -> None:
    part = part_folder(folder, NAME, token)
    part.mkdir(parents=True)
    (part / "rank").write_text(content)


def test_a_part_becomes_visible_under_its_name(tmp_path: Path) -> None:
    token = claim(tmp_path)
    write_part(tmp_path, token, "a")
    assert commit(tmp_path, NAME, token) == tmp_path / NAME
    assert (tmp_path / NAME / "rank").read_text() == "a"


def test_a_writer_that_wakes_up_after_a_new_start_is_refused(tmp_path: Path) -> None:
    old = claim(tmp_path)
    new = claim(tmp_path)
    assert old != new
    write_part(tmp_path, old, "stale")
    with pytest.raises(Superseded, match=new):
        commit(tmp_path, NAME, old)
    assert not (tmp_path / NAME).exists()
    check_claim(tmp_path, new)


def test_a_part_that_was_written_before_a_new_start_is_gone(tmp_path: Path) -> None:
    old = claim(tmp_path)
    write_part(tmp_path, old, "stale")
    claim(tmp_path)
    assert not part_folder(tmp_path, NAME, old).exists()


def test_a_claim_between_check_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instant that a check alone would miss: the part is gone, so the rename cannot work."""
    old = claim(tmp_path)
    write_part(tmp_path, old, "stale")
    checks = []

    def check_and_lose(folder: Path, token: str) -> None:
        if not checks:
            check_claim(folder, token)  # passes
            claim(folder)
        checks.append(token)
        check_claim(folder, token) if len(checks) > 1 else None

    monkeypatch.setattr("distributed.checkpoint.fencing.check_claim", check_and_lose)
    with pytest.raises((Superseded, FileNotFoundError)):
        commit(tmp_path, NAME, old)
    assert not (tmp_path / NAME).exists()


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    token = claim(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "rank").write_text("good")
    write_part(tmp_path, token, "other")
    with pytest.raises(OSError, match="not empty"):
        commit(tmp_path, NAME, token)
    assert (tmp_path / NAME / "rank").read_text() == "good"
