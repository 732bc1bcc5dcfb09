"""A range of workers: what it may be, how many are started, when more are asked for."""

import time
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from launch import elastic, ray_cluster
from launch.configuration import LaunchConfig
from launch.elastic import ask_when_more_fit, await_workers

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
    places, told = iter([0, 1, 3, 9]), list[str]()
    monkeypatch.setattr(elastic, "count_answering_places", lambda *_, use_gpu: next(places))
    assert await_workers(RANGE, use_gpu=False, say=told.append, seconds=0.0) == 3
    assert told == [
        "the cluster holds 0 worker(s); waiting until it holds 2, the fewest of launch.num_workers"
    ]
    assert await_workers(RANGE, use_gpu=False, say=told.append, seconds=0.0) == 4
    assert await_workers(FIXED, use_gpu=False, say=told.append, seconds=0.0) == 3  # not asked


@pytest.mark.parametrize(
    ("workers", "places", "is_free", "asks"),
    [(2, 4, True, True), (2, 4, False, False), (2, 2, True, False), (4, 9, True, False)],
)
def test_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    workers: int,
    places: int,
    is_free: bool,
    asks: bool,
) -> None:
    looked = []

    def count(*_: object, use_gpu: bool) -> int:
        looked.append(use_gpu)
        if len(looked) == 1:
            raise ConnectionError("the cluster does not answer")
        return places

    monkeypatch.setattr(elastic, "count_places_of_cluster", count)
    monkeypatch.setattr(elastic, "is_place_free", lambda *_, use_gpu: is_free)
    request = tmp_path / "resize"
    with ask_when_more_fit(RANGE, workers, request, use_gpu=False, seconds=0.001):
        deadline = time.monotonic() + 20
        while workers < 4 and len(looked) < 3 and not request.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert request.exists() == asks


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
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, "")  # so that they are put back
    ray_cluster._start(tmp_path)
    told = capsys.readouterr().out.splitlines()
    assert (
        told[1:] == ["the Ray cluster did not start (The agent did not start.); trying again"] * 2
    )

    starts[:] = []
    monkeypatch.setattr(ray_cluster, "_STARTS", 2)
    (tmp_path / "ray_token").unlink()
    with pytest.raises(RuntimeError, match="did not start"):
        ray_cluster._start(tmp_path)
