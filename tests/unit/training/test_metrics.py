"""What is written can be read: metrics.jsonl as JSON, TensorBoard by TensorBoard's own reader."""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from bert.architecture import SHORT_TITLES
from distributed.fragment import Fragment
from distributed.world import Topology
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig
from training.metrics import Metrics, MetricsFiles
from training.sinks import flatten, render_densities

DENSITIES = "sparsity/densities"


@pytest.fixture(scope="module", autouse=True)
def _group_of_one() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def metrics_in(folder: Path, *, start_step: int = 0, rank: int = 0) -> Metrics:
    folder.mkdir(exist_ok=True)
    return Metrics(
        MetricsFiles(folder / "metrics.jsonl", folder / "tensorboard"),
        topology=Topology(rank, 1, 0, torch.device("cpu")),
        start_step=start_step,
        flops_per_token=1e6,
        config_text="name: a run\nseed: 1\n",
        digests={"data": "0123", "first weights": None},
        matrix_titles=SHORT_TITLES,
    )


def restart(folder: Path, *, start_step: int) -> Metrics:
    """A later attempt: readers order the files by the second in which they were opened."""
    time.sleep(1 - time.time() % 1)
    return metrics_in(folder, start_step=start_step)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def board(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board(folder).Scalars(tag)]


def train(metrics: Metrics, steps: range, *, scale: float = 1.0) -> None:
    """Two micro-steps a step, whose losses add up to `scale` * step; a record a step."""
    for step in steps:
        metrics.begin_step()
        for share in (0.25, 0.75):
            metrics.add("train/mlm_loss", torch.tensor(share * scale * step))
        metrics.end_step(100)
        metrics.record({"train/learning_rate": 0.5**step})
        metrics.flush(step, None)


def sparsity_of(numels: dict[str, int], **schedule: Any) -> SparsityController:
    """The real controller on plain tensors, where a DeepSpeed engine's masters would be."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in numels.values()]
    fragments = [
        Fragment(name, 0, numel, slot, 0, 0, numel)
        for slot, (name, numel) in enumerate(numels.items())
    ]
    partition = SimpleNamespace(
        fragments=fragments,
        numels={**numels, "embedding": 1000},
        shapes={name: (numel,) for name, numel in numels.items()},
        rank=0,
        world_size=1,
        master=lambda f: parameters[f.slot].detach(),
        gradients_reach_norm=True,
        is_mid_step=False,
    )
    return SparsityController(
        SparsityConfig.model_validate(schedule),
        partition,  # type: ignore[arg-type]
        prunable=list(numels),
        optimizer=torch.optim.AdamW(parameters),
    )


# Records.


def test_a_record_holds_the_mean_over_its_steps(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    for loss in (4.0, 3.0, 2.0):
        metrics.begin_step()
        metrics.add("train/mlm_loss", torch.tensor(loss / 4))
        metrics.add("train/mlm_loss", torch.tensor(loss * 3 / 4))
        metrics.end_step(tokens=50)
    metrics.record({"train/grad_norm": 0.5, "note": "text"})
    assert metrics.has_record
    metrics.flush(30, None)
    assert not metrics.has_record
    (record,) = records(tmp_path)
    assert record == metrics.latest
    assert record["step"] == 30 and record["train/mlm_loss"] == 3.0
    assert record["train/grad_norm"] == 0.5 and record["note"] == "text"
    # Tokens a second times seconds a step are the tokens of a step, but for a rounding.
    throughput = record["throughput/tokens_per_second"] * record["throughput/step_seconds"]
    assert throughput == pytest.approx(50, rel=1e-9)
    assert record["memory/peak_gib"] > 0


def test_nothing_of_one_record_is_in_the_next(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    train(metrics, range(1, 3))
    metrics.record({"validation/a/mlm_loss": 1.0})
    metrics.flush(2, None)  # after no step: no loss, no throughput
    train(metrics, range(3, 4))
    first, second, between, last = records(tmp_path)
    assert [r["train/mlm_loss"] for r in (first, second, last)] == [1.0, 2.0, 3.0]
    assert set(between) == {"step", "validation/a/mlm_loss", "memory/peak_gib"}
    assert "validation/a/mlm_loss" not in last


def test_sums_are_kept_in_double(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    metrics.begin_step()
    for share in [1e8] + [0.5] * 100:  # in fp32 each half would be lost
        metrics.add("train/mlm_loss", torch.tensor(share))
    metrics.end_step(1)
    metrics.flush(1, None)
    assert records(tmp_path)[0]["train/mlm_loss"] == 1e8 + 50


def test_only_rank_0_writes_and_all_know_the_latest(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path, rank=1)
    train(metrics, range(1, 2))
    metrics.close()
    assert metrics.latest["train/mlm_loss"] == 1.0
    assert list(tmp_path.iterdir()) == []


# Sparsity.


def test_sparsity_figures_and_densities_once_an_update(tmp_path: Path) -> None:
    numels = {f"layer.{i}.{part}": 40 + i for i in range(2) for part in "abcdef"}
    sparsity = sparsity_of(
        numels, final_sparsity=0.5, prune_start_step=1, prune_end_step=3, prune_interval_steps=2
    )
    metrics = metrics_in(tmp_path)
    for step in range(5):
        if sparsity.is_due(step):
            sparsity.update(step)
        metrics.flush(step + 1, sparsity)
    metrics.close()
    total = sum(numels.values())
    pruned = [0, 0, 0, round(0.5 * total), round(0.5 * total)]
    rows = records(tmp_path)
    assert [row["sparsity/actual"] for row in rows] == [p / total for p in pruned]
    assert [row["sparsity/actual_all_weights"] for row in rows] == [
        p / (total + 1000) for p in pruned
    ]
    assert [row["sparsity/target"] for row in rows] == [0, 0, 0, 0.5, 0.5]
    assert rows[3]["sparsity/churn"] == 0.5 and rows[3]["sparsity/threshold"] > 0
    assert rows[2]["sparsity/digest"] == "0" * 16 != rows[3]["sparsity/digest"]
    assert len(rows[3]["sparsity/digest"]) == 16
    assert [DENSITIES in row for row in rows] == [False, True, False, True, False]
    densities = rows[3][DENSITIES]
    assert list(densities) == list(numels)
    kept = sum(densities[name] * numel for name, numel in numels.items())
    assert kept == pytest.approx(total - pruned[-1], abs=1e-9)

    events = board(tmp_path)
    assert curve(tmp_path, "sparsity/actual") == [
        (step + 1, pytest.approx(p / total, rel=1e-7)) for step, p in enumerate(pruned)
    ]
    for name in numels:
        (before, after) = curve(tmp_path, f"density/{name}")
        assert before == (2, 1.0) and after == (4, pytest.approx(densities[name], rel=1e-7))
    images = events.Images("sparsity/density_by_layer")
    assert [(image.step, image.width, image.height) for image in images] == [
        (2, 352, 112),
        (4, 352, 112),
    ]
    texts = events.Tensors("mask digest/text_summary")
    digest = rows[3]["sparsity/digest"]
    assert [t.step for t in texts] == [2, 4]
    assert digest in texts[1].tensor_proto.string_val[0].decode()


# TensorBoard.


def test_events_are_readable(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    train(metrics, range(1, 6))
    # Written through at each record, not only when the run ends.
    assert curve(tmp_path, "train/mlm_loss") == [(n, float(n)) for n in range(1, 6)]
    metrics.close()
    events = board(tmp_path)
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == [0.5**n for n in range(1, 6)]
    assert "step" not in events.Tags()["scalars"]
    (text,) = events.Tensors("configuration/text_summary")
    assert "name: a run" in text.tensor_proto.string_val[0].decode()
    (text,) = events.Tensors("digests/text_summary")
    assert "| data | 0123 |\n| first weights | none |" in text.tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("closed", [True, False])
def test_a_resume_leaves_one_curve(tmp_path: Path, closed: bool) -> None:
    """Steps beyond the checkpoint at 3 are logged again, twice over; readers see each once."""
    first = metrics_in(tmp_path)
    train(first, range(1, 7))
    if closed:
        first.close()
    second = restart(tmp_path, start_step=3)
    train(second, range(4, 6), scale=10)
    if closed:
        second.close()
    third = restart(tmp_path, start_step=3)
    train(third, range(4, 9), scale=100)
    third.close()
    want = [(n, float(n)) for n in (1, 2, 3)] + [(n, 100.0 * n) for n in range(4, 9)]
    assert curve(tmp_path, "train/mlm_loss") == want


# The heat map.


def test_the_image_has_a_row_a_layer() -> None:
    matrices = ("attention.self.query", "output.dense", "odd.name")
    names = [f"encoder.layer.{layer}.{matrix}.weight" for layer in (0, 11) for matrix in matrices]
    densities = np.linspace(0, 1, 6).tolist()
    image = render_densities(dict(zip(names, densities, strict=True)), SHORT_TITLES)
    assert image.shape == (16 + 2 * 48, 64 + 3 * 48, 3) and image.dtype == np.uint8
    # The corners of the cells: no figure is written there.
    cells = image[16 + 4 :: 48, 64 + 4 :: 48]
    assert cells.shape == (2, 3, 3)
    assert cells[0, 0].tolist() == [8, 29, 88]  # nothing kept
    assert cells[1, 2].tolist() == [255, 255, 255]  # all kept
    assert (np.diff(cells.reshape(6, 3).astype(int), axis=0) > 0).all()
    # Labels are there, and each cell has its figure.
    assert (image[:16, 64:] < 100).any() and (image[16:, :64] < 100).any()
    for row, column in np.ndindex(2, 3):
        cell = image[16 + 48 * row :, 64 + 48 * column :][4:44, 4:44]
        assert (cell != cells[row, column]).any()


def test_the_image_of_other_models_is_one_row() -> None:
    image = render_densities({"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.1})
    assert image.shape == (16 + 48, 64 + 4 * 48, 3)


# Hyperparameters.


def test_settings_are_flat_and_plain() -> None:
    config = {"name": "x", "train": {"rate": 1e-3, "betas": [0.9, 0.98]}, "a": {"b": {"c": True}}}
    flat = flatten({**config, "sparsity": None})
    assert flat == {"name": "x", "train.rate": 1e-3, "train.betas": "[0.9, 0.98]", "a.b.c": True}


def test_the_layout_and_the_settings_are_written(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    train(metrics, range(1, 2))
    metrics.close()
    accumulator = board(tmp_path)
    (layout,) = accumulator.Tensors("custom_scalars__config__")
    parsed = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    first = parsed.category[0]
    assert len(first.chart) == 5
    tags = set(accumulator.Tags()["scalars"])
    patterns = [p for chart in first.chart for p in chart.multiline.tag]
    assert {tag for tag in tags if any(re.search(p, tag) for p in patterns)} == {
        "train/mlm_loss",
        "throughput/tokens_per_second",
    }
    content = accumulator.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["seed"].number_value == 1
    assert session.hparams["name"].string_value == "a run"


def test_what_is_not_finite_is_null_and_the_file_is_json(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    metrics.record({"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": "nan"})
    metrics.flush(1, None)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(line, parse_constant=refuse)
    assert (record["a"], record["b"], record["c"], record["d"]) == (None, None, 1.5, "nan")
    assert metrics.latest == record


def test_a_note_waits_for_the_next_record_and_forces_none(tmp_path: Path) -> None:
    metrics = metrics_in(tmp_path)
    metrics.note({"checkpoint/stall_seconds": 0.25})
    assert not metrics.has_record
    train(metrics, range(1, 3))
    first, second = records(tmp_path)
    assert first["checkpoint/stall_seconds"] == 0.25
    assert "checkpoint/stall_seconds" not in second


def test_a_full_disk_delays_records_and_tears_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes 100 bytes and then nothing more, until there is room again."""
    real, room = os.write, {"bytes": 100}

    def write(descriptor: int, data: bytes) -> int:
        if not room["bytes"]:
            raise OSError(28, "No space left on device")
        written = real(descriptor, data[: room["bytes"]])
        room["bytes"] -= written
        return written

    metrics = metrics_in(tmp_path)
    train(metrics, range(1, 2))
    monkeypatch.setattr(os, "write", write)
    train(metrics, range(2, 4))
    assert [record["step"] for record in records(tmp_path)] == [1]
    monkeypatch.setattr(os, "write", real)
    train(metrics, range(4, 5))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error ends TensorBoard's own thread, and with it the file."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    metrics = metrics_in(tmp_path)
    for step in range(1, 7):
        with monkeypatch.context() as patched:
            if step in (2, 3):
                patched.setattr(RecordWriter, "write", full)
            metrics.record({"train/loss": float(step)})
            metrics.flush(step, None)
    metrics.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    shown = {event.step for event in board(tmp_path).Scalars("train/loss")}
    assert shown >= {1, 5, 6}, "4 may be the one that finds the dead thread"


def test_a_record_may_be_refused_before_it_is_written(tmp_path: Path) -> None:
    def refuse(record: dict[str, Any]) -> None:
        raise RuntimeError(f"superseded at {record['step']}")

    metrics = Metrics(
        MetricsFiles(tmp_path / "metrics.jsonl", tmp_path / "tensorboard"),
        topology=Topology(0, 1, 0, torch.device("cpu")),
        start_step=0,
        flops_per_token=1e6,
        config_text="name: run",
        digests={},
        matrix_titles={},
        on_record=refuse,
    )
    with pytest.raises(RuntimeError, match="superseded at 1"):
        metrics.flush(1, None)
    assert not (tmp_path / "metrics.jsonl").exists()
