import json
from pathlib import Path

import pytest

from training.events import EventTail, append_event


def test_events_are_told_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append_event(file, "damage", "before this start")
    tail, told = EventTail(file), list[str]()
    tail.tell(told.append)
    assert told == []
    append_event(file, "spike", "a", step=3)
    with open(file, "a") as out:
        out.write('{"kind": "torn')
    tail.tell(told.append)
    tail.tell(told.append)
    assert told == ["a"]
    event = json.loads(file.read_text().splitlines()[1])
    assert (event["kind"], event["message"], event["step"]) == ("spike", "a", 3)


def test_no_file_and_no_disk_are_borne(tmp_path: Path) -> None:
    EventTail(tmp_path / "none.jsonl").tell(pytest.fail)
    append_event(tmp_path / "no folder" / "events.jsonl", "spike", "lost")


def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    tail = EventTail(file)
    file.write_text('{"kind": "spi{"kind": "spike", "message": "a"}\n[1]\n{"kind": "spike"}\n')
    append_event(file, "spike", "b")
    told: list[str] = []
    tail.tell(told.append)
    assert told == ["b"]
