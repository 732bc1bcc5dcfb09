import os
from pathlib import Path

from training.folder import truncate_metrics
from training.tail import Tail


def append(file: Path, text: str) -> None:
    with open(file, "a") as out:
        out.write(text)


def steps(tail: Tail) -> list[int]:
    return [each["step"] for each in tail.poll()]


def test_tail_of_a_growing_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert steps(tail) == []
    append(file, '{"step": 1}\n{"st')
    assert steps(tail) == [1]
    assert steps(tail) == []
    append(file, 'ep": 2}\n')
    assert steps(tail) == [2]
    append(file, 'torn\n[3]\n{"step": 3}\n')
    assert steps(tail) == [3]
    tail.close()


def test_tail_after_a_restart_cut_the_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    append(file, "".join(f'{{"step": {s}}}\n' for s in (10, 20, 30, 40)) + '{"step": 5')
    assert steps(tail) == [10, 20, 30, 40]
    truncate_metrics(file, 20)
    assert steps(tail) == [], "what is left was seen"
    append(file, '{"step": 30}\n')
    assert steps(tail) == [30], "written anew"
    # Cut, appended and cut again between two looks.
    truncate_metrics(file, 20)
    append(file, '{"step": 25}\n{"step": 30}\n')
    truncate_metrics(file, 25)
    append(file, '{"step": 35}\n')
    assert steps(tail) == [25, 35]
    tail.close()


def test_tail_of_a_file_that_is_cut_in_place_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    append(file, '{"step": 10}\n{"step": 20}\n')
    assert steps(tail) == [10, 20]
    file.write_text('{"step": 10}\n')
    assert steps(tail) == []
    file.unlink()
    assert steps(tail) == []
    append(file, '{"step": 5}\n')
    assert steps(tail) == [5]
    tail.close()


def test_tail_outlives_storage_that_fails(tmp_path: Path) -> None:
    """As when a file that was replaced on another node is gone from the server."""
    file = tmp_path / "metrics.jsonl"
    append(file, '{"step": 1}\n{"st')
    tail = Tail(file)
    assert steps(tail) == [1]
    assert tail._file is not None
    os.close(tail._file.fileno())
    assert steps(tail) == []
    append(file, 'ep": 2}\n')
    assert steps(tail) == [2], "nothing twice and nothing lost"


def test_what_is_there_may_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append(file, '{"step": 1}\n')
    tail = Tail(file, skip_existing=True)
    append(file, '{"step": 2}\n')
    assert steps(tail) == [2]
