"""A range of workers: what it may be, how many are started, when more are asked for."""

import threading
import time
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from distributed.errors import BadInput
from launch.cluster import elastic
from launch.cluster import own as own_cluster
from launch.cluster.elastic import ask_when_more_fit, await_workers
from launch.cluster.own import start_own_cluster
from training.config import LaunchConfig

RANGE = LaunchConfig(num_workers=(2, 4), use_gpu=False)
FIXED = LaunchConfig(num_workers=3, use_gpu=False)


def test_a_range_is_written_and_read_again() -> None:
    written = yaml.safe_dump(RANGE.model_dump(mode="json"))
    again = LaunchConfig.model_validate(yaml.safe_load(written))
    assert again == RANGE
    assert (again.fewest_workers, again.most_workers, again.is_elastic) == (2, 4, True)
    assert (FIXED.fewest_workers, FIXED.most_workers, FIXED.is_elastic) == (3, 3, False)


@pytest.mark.parametrize("value", [0, -1, [4, 2], [0, 2], [1], [1, 2, 3], [1, 2.5], ["a", 2], []])
def test_no_range(value: object) -> None:
    with pytest.raises(ValidationError):
        LaunchConfig.model_validate({"num_workers": value})


def test_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    places, told = iter([0, 0, 0, 1, 3, 3, 3, 9, 2]), list[str]()
    monkeypatch.setattr(elastic, "count_free_places", lambda *_, use_gpu: next(places))

    def await_them(launch: LaunchConfig, *, give_up: bool = False) -> int:
        return await_workers(
            launch, use_gpu=False, say=told.append, give_up=lambda: give_up, seconds=0.0
        )

    assert await_them(RANGE) == 3
    assert told == [
        "there is room for 0 worker(s) now; waiting for more, because launch.num_workers is [2,4]"
    ]
    assert await_them(RANGE) == 4
    assert await_them(FIXED) == 3  # not asked
    assert await_them(RANGE, give_up=True) == 0
    assert next(places) == 2


@pytest.mark.parametrize(
    ("is_full", "places", "refused", "asks"),
    [
        (False, [1, 1], None, True),
        (False, [1, 0, 1, 0, 1, 1], None, True),
        (False, [1, 0, 1, 0, 1, 0], None, False),
        (False, [1, 1, 1, 1], "n3 does not share it", False),
        (True, [1, 1, 1], None, False),
    ],
)
def test_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_full: bool,
    places: list[int],
    refused: str | None,
    asks: bool,
) -> None:
    looks, told = iter([None, *places]), list[str]()
    done = threading.Event()

    def count(*_: object, use_gpu: bool) -> int:
        found = next(looks, "end")
        if found is None:
            raise ConnectionError("the cluster does not answer")
        if found == "end":
            done.set()
            return 0
        return int(found)

    def check() -> None:
        if refused:
            raise BadInput(refused)

    monkeypatch.setattr(elastic, "count_free_places", count)
    request = tmp_path / "resize"
    with ask_when_more_fit(
        RANGE,
        request,
        use_gpu=False,
        is_full=is_full,
        check=check,
        say=told.append,
        seconds=0.001,
    ):
        deadline = time.monotonic() + 20
        while not (is_full or done.is_set() or request.exists() or told):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert request.exists() == asks
    assert told == (
        [f"there is room for more workers, and it is not used: {refused}"] if refused else []
    )


def test_a_refusal_is_told_once_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A node is lost in the middle of the check; later there is room without it."""
    refusals, told = iter(["no storage on n3", "no storage on n3", "no data on n3"]), list[str]()

    def check() -> None:
        if (refused := next(refusals, None)) is not None:
            raise BadInput(refused)

    monkeypatch.setattr(elastic, "count_free_places", lambda *_, **__: 1)
    request = tmp_path / "resize"
    with ask_when_more_fit(
        RANGE, request, use_gpu=False, is_full=False, check=check, say=told.append, seconds=0.001
    ):
        deadline = time.monotonic() + 20
        while not request.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert [message.rpartition(": ")[2] for message in told] == [
        "no storage on n3",
        "no data on n3",
    ]


def test_ray_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    starts = []

    def init(**_: object) -> None:
        starts.append(1)
        if len(starts) < 3:
            raise RuntimeError("The agent did not start.\nSee the logs.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    switches = ("TRAIN_ENABLE_PREEMPTION_WATCHER", "prestart_worker_first_driver")
    for name in ("AUTH_MODE", "AUTH_TOKEN_PATH", "TRAIN_METRICS_ENABLED", *switches):
        monkeypatch.setenv(f"RAY_{name}", "")  # so that they are put back
    start_own_cluster(tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert (
        told[1:] == ["the Ray cluster did not start (The agent did not start.); trying again"] * 2
    )

    starts[:] = []
    monkeypatch.setattr(own_cluster, "_STARTS", 2)
    (tmp_path / "ray_token").unlink()
    with pytest.raises(RuntimeError, match="did not start"):
        start_own_cluster(tmp_path)
