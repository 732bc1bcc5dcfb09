"""Gradients that are not finite, and masks that are not what they were: agreed, told, survived."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bert.pretrain import Pretraining, check_pretraining
from distributed.checkpoint.reading import list_steps
from distributed.files import write_json
from sparsity.integrity import check_masks
from tests.multiprocess import pool
from tests.multiprocess.runs import (
    STEPS,
    Text,
    column,
    contents,
    differences,
    last_checkpoint,
    prepare_text,
    run_config,
    train,
)
from tests.multiprocess.runs import _train_here as train_here
from tests.multiprocess.test_checkpoint import attach
from tests.multiprocess.test_checkpoint import train as train_toy
from tests.multiprocess.toy import toy_engine
from training.folder import run_folder_of
from training.session import begin_run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


def train_on_bad_batches(config: Any, plan: dict[str, Any], bad: tuple[int, ...]) -> dict[str, Any]:
    """In a pool process: the last rank's gradient of those batches is not a number."""
    from bert.corpora.batches import RowBatches
    from distributed.zero import Engine

    now = {"batch": -1}
    micro_batches, backward = RowBatches.micro_batches, Engine.backward

    def note_batch(self: Any, batch: int) -> Any:
        now["batch"] = -1 if self.evaluation else batch
        return micro_batches(self, batch)

    def spoil(self: Any, loss: torch.Tensor) -> None:
        is_last = dist.get_rank() == dist.get_world_size() - 1
        backward(self, loss * float("nan") if is_last and now["batch"] in bad else loss)

    RowBatches.micro_batches, Engine.backward = note_batch, spoil  # type: ignore[method-assign]
    try:
        return train_here(config, plan, None)
    finally:
        RowBatches.micro_batches, Engine.backward = micro_batches, backward  # type: ignore[method-assign]


def start(config: Any, *bad: int) -> list[dict[str, Any]]:
    plan = check_pretraining(config)
    begin_run(Pretraining(config), plan)
    return pool.run(2, train_on_bad_batches, config, asdict(plan), bad)


def events(config: Any) -> list[str]:
    lines = run_folder_of(config).events_file.read_text().splitlines()
    return [json.loads(line)["message"] for line in lines]


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_bad_gradient_of_one_rank_is_skipped_by_all(
    text: Text, tmp_path: Path, stage: int
) -> None:
    config = run_config(text, tmp_path, "run", zero={"stage": stage})
    states = start(config, 3)
    assert states[0] == states[1]
    assert (states[0]["step"], states[0]["skipped_steps"]) == (STEPS, 1)
    assert states[0]["skipped_in_a_row"] == 0
    (told,) = events(config)
    assert told.startswith("step 4: the gradient is not finite and nothing was updated; its batch")
    folder = run_folder_of(config)
    lines = folder.metrics_file.read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records if r["train/grad_norm"] is None] == [4]
    for kind, weights in contents(last_checkpoint(folder)).items():
        assert all(w.isfinite().all() for w in weights.values() if w.is_floating_point()), kind


def test_the_rows_that_are_told_are_those_of_the_batch(text: Text, tmp_path: Path) -> None:
    from bert.corpora.batches import build_training_batches
    from bert.vocabulary import load_vocabulary

    config = run_config(text, tmp_path, "run")
    start(config, 1)
    batches = build_training_batches(
        config.data,
        vocabulary=load_vocabulary(text.vocabulary),
        seed=config.seed,
        global_batch_rows=config.train.global_batch_rows,
        micro_batch_rows=1,
        rank=0,
        world_size=1,
    )
    rows = ", ".join(map(str, batches.row_ids(1)))
    assert events(config)[0].endswith(f"has 6 rows, {rows} of epoch {batches.epoch(1)}")


def test_too_many_in_a_row_end_the_run(text: Text, tmp_path: Path) -> None:
    config = run_config(text, tmp_path, "run", train={"max_non_finite_steps": 2})
    errors = start(config, 0, 2, 3, 4)
    assert errors[0] == errors[1]
    assert errors[0]["error"].startswith("Unrecoverable: step 5: the gradient is not finite")
    assert errors[0]["error"].endswith("3 in a row, and train.max_non_finite_steps is 2")


def test_the_policy_may_be_to_stop(text: Text, tmp_path: Path) -> None:
    changes = {"on_non_finite": "stop"}
    config = run_config(text, tmp_path, "run", train=changes, checkpoint={"interval_steps": 2})
    errors = start(config, 4)
    assert errors[0] == errors[1]
    assert "(train.on_non_finite is stop)" in errors[0]["error"]
    folder = run_folder_of(config)
    assert list_steps(folder.checkpoints) == [2, 4]
    # It is free to go on otherwise: the same run, another policy.
    later = run_config(text, tmp_path, "run", checkpoint={"interval_steps": 2})
    train(2, later)
    assert last_checkpoint(folder).state["train"]["skipped_steps"] == 0


def test_the_policy_may_be_to_go_back_and_past_the_rows(text: Text, tmp_path: Path) -> None:
    """Bit for bit the run that was told at step 2 to go on with batch 4."""

    def config(name: str) -> Any:
        changes = {"on_non_finite": "rollback"}
        return run_config(text, tmp_path, name, train=changes, checkpoint={"interval_steps": 2})

    states = start(config("run"), 3)
    assert states[0] == states[1]
    assert (states[0]["batch_offset"], states[0]["skipped_steps"]) == (2, 0)
    told = events(config("run"))
    assert told[0].startswith("step 4: the gradient is not finite")
    assert told[1:] == ["going back to step 2 and on with batch 4"]

    oracle = config("oracle")
    folder = train(2, oracle, stop_after=1)
    assert list_steps(folder.checkpoints) == [2]
    write_json(folder.passed_over_file, [{"step": 2, "next_batch": 4}])
    train(2, oracle)
    ours = run_folder_of(config("run"))
    assert differences(contents(last_checkpoint(ours)), contents(last_checkpoint(folder))) == []
    for figure in ("train/mlm_loss", "train/tokens_seen", "sparsity/digest"):
        assert column(ours, figure) == column(folder, figure)


def test_returns_have_an_end(text: Text, tmp_path: Path) -> None:
    changes = {"on_non_finite": "rollback", "max_non_finite_steps": 2}
    config = run_config(text, tmp_path, "run", train=changes)
    errors = start(config, 0, 1, 2)
    assert errors[0] == errors[1]
    assert "returned to a checkpoint 3 times" in errors[0]["error"]


def spoil_masks(how: str) -> str | None:
    """On the last rank alone; what check_masks says, which is the same on all."""
    engine = toy_engine(stage=2)
    sparsity = attach(engine)
    train_toy(engine, sparsity, 0, 3)
    check_masks(sparsity, sparsity.packed_masks())
    if dist.get_rank() == dist.get_world_size() - 1:
        owned = [m for f, m in sparsity._masks.items() if f.owned_stop > f.owned_start]
        keep = next(m.keep for m in owned if (m.keep == 0).any() and (m.keep != 0).any())
        fragment = next(f for f, m in sparsity._masks.items() if m.keep is keep)
        pruned, live = (keep == 0).nonzero()[0], (keep != 0).nonzero()[0]
        if how == "weight":
            engine.partition.master(fragment)[pruned] = 0.5
        if how in ("count", "swap"):
            keep[pruned] = -1
        if how == "swap":
            keep[live] = 0
            engine.partition.master(fragment)[live] = 0.0
            engine.partition.weight(fragment)[live] = 0.0
    try:
        check_masks(sparsity, sparsity.packed_masks())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("weight", "Unrecoverable: a pruned weight of "),
        ("count", "Unrecoverable: the mask of "),
        ("swap", "Unrecoverable: the masks' digest is "),
    ],
)
def test_a_mask_that_changed_in_memory_is_found_by_all(how: str, words: str) -> None:
    for world_size in (1, 3):
        told = pool.run(world_size, spoil_masks, how)
        assert len(set(told)) == 1 and told[0].startswith(words), told
