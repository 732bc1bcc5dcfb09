"""Whole runs through the worker function, on real text: what must not change a run.

Where runs are compared, bits are compared. Across world sizes gradients are added in another order:
there a bound is stated, with what was measured.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert.architecture import is_prunable, named_weights
from bert.model import build_model
from bert.vocabulary import load_vocabulary
from distributed.checkpoint.reading import MASK, MASTER, list_steps, step_folder
from launch.models.export import export_checkpoint
from tests.multiprocess.runs import (
    FROZEN,
    STEPS,
    Text,
    column,
    contents,
    differences,
    last_checkpoint,
    one_shot,
    prepare_text,
    run_config,
    start,
    train,
    worker_log,
)
from tests.unit.sparsity.oracle import expected_digest, expected_keep
from training.folder import RunFolder, read_metrics, run_folder_of

# Gradients of 2 and 3 ranks are averaged in another order than one rank adds them: measured 1e-7.
FIRST_STEP_BOUND = 1e-6
# Adam divides small gradients by their own size, so the difference grows from step to step.
LATER_STEPS_BOUND = 1e-4
# fp32 rounds this learning rate to 0: such a run moves no weight.
NO_RATE = 1e-300
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


# Stop and resume.


@pytest.mark.parametrize(
    ("world_size", "stage", "precision"),
    [
        (1, 0, "fp32"),
        (1, 3, "bf16"),
        (2, 0, "bf16"),
        (2, 1, "fp32"),
        (2, 2, "fp32"),
        (3, 2, "bf16"),
        (3, 3, "fp32"),
    ],
)
def test_stopped_and_resumed_ends_bit_identical(
    text: Text, tmp_path: Path, world_size: int, stage: int, precision: str
) -> None:
    def config(name: str) -> Any:
        changes = {"train": {"precision": precision, **DROPOUT}, "zero": {"stage": stage}}
        return run_config(text, tmp_path, name, **changes)

    whole = train(world_size, config("whole"))
    parted = train(world_size, config("parted"), stop_after=1)
    # Asked after one step, agreed one later: between the mask updates before steps 1 and 3.
    assert list_steps(parted.checkpoints) == [2]
    train(world_size, config("parted"))
    assert "at step 2" in worker_log(parted, world_size - 1)

    ends = [last_checkpoint(folder) for folder in (whole, parted)]
    assert differences(*map(contents, ends)) == []
    assert {MASTER, MASK, "exp_avg", "exp_avg_sq"} == set(ends[0].kinds)
    for key in ("train", "sparsity"):
        assert ends[0].state[key] == ends[1].state[key]
    assert ends[0].optimizer_steps == ends[1].optimizer_steps == STEPS
    for figure in ("mlm_loss", "grad_norm", "tokens_seen"):
        assert column(whole, f"train/{figure}") == column(parted, f"train/{figure}"), figure
    for figure in ("digest", "target", "actual", "threshold", "ties", "churn"):
        assert column(whole, f"sparsity/{figure}") == column(parted, f"sparsity/{figure}"), figure


def test_runs_without_and_with_dropout_differ(text: Text, tmp_path: Path) -> None:
    """Else the test above would not see dropout at all."""
    plain = train(1, run_config(text, tmp_path, "plain"))
    dropped = train(1, run_config(text, tmp_path, "dropped", train=DROPOUT))
    assert column(plain, "train/mlm_loss")[1] != column(dropped, "train/mlm_loss")[1]


def test_a_resume_logs_each_step_once(text: Text, tmp_path: Path) -> None:
    """After a crash: records beyond the last good checkpoint, a torn line, a damaged checkpoint."""
    config = run_config(text, tmp_path, "run", checkpoint={"interval_steps": 2})
    folder = train(2, config)
    assert list_steps(folder.checkpoints) == [2, 4, 6]
    figures = ("train/mlm_loss", "sparsity/digest", "train/tokens_seen")
    before = {figure: column(folder, figure) for figure in figures}
    end = contents(last_checkpoint(folder))

    shutil.rmtree(step_folder(folder.checkpoints, 6))
    file = step_folder(folder.checkpoints, 4) / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with open(folder.metrics_file, "a") as metrics:
        metrics.write('{"step": 7, "train/ml')
    train(2, config)

    assert "passed over a damaged checkpoint" in worker_log(folder, 0)
    assert [record["step"] for record in read_metrics(folder.metrics_file)] == [1, 2, 3, 4, 5, 6]
    assert {figure: column(folder, figure) for figure in figures} == before
    assert differences(contents(last_checkpoint(folder)), end) == []


def test_a_run_goes_on_with_another_world_size_and_stage(text: Text, tmp_path: Path) -> None:
    whole = train(2, run_config(text, tmp_path, "whole"))
    moved = train(2, run_config(text, tmp_path, "moved"), stop_after=2)
    changed = run_config(text, tmp_path, "moved", zero={"stage": 3}, train={"micro_batch_rows": 1})
    train(3, changed)
    losses, want = column(moved, "train/mlm_loss"), column(whole, "train/mlm_loss")
    assert {s: losses[s] for s in (1, 2, 3)} == {s: want[s] for s in (1, 2, 3)}
    assert losses[4] == pytest.approx(want[4], rel=FIRST_STEP_BOUND)
    assert losses == pytest.approx(want, rel=LATER_STEPS_BOUND)
    # The update at step 3 saw the very same weights.
    assert column(moved, "sparsity/digest")[4] == column(whole, "sparsity/digest")[4]
    assert column(moved, "train/tokens_seen") == column(whole, "train/tokens_seen")


# The same on every cluster.


def test_one_digest_everywhere(text: Text, tmp_path: Path) -> None:
    tiny = {"num_layers": 1}
    config = run_config(text, tmp_path, "oracle", model=tiny, sparsity=one_shot())
    vocabulary = load_vocabulary(text.vocabulary)
    module = build_model(
        config.model,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        seed=config.seed,
    )
    weights = {
        name: p.detach().flatten().numpy() for name, p in named_weights(module) if is_prunable(name)
    }
    keep = expected_keep(weights, sum(w.size for w in weights.values()) // 2)
    want = expected_digest(keep)
    for world_size in (1, 2, 3):
        for stage in (0, 1, 2, 3):
            for precision in ("fp32", "bf16"):
                name = f"{world_size}-{stage}-{precision}"
                changes = {
                    "model": tiny,
                    "train": {"total_steps": 2, "precision": precision, "micro_batch_rows": 6},
                    "zero": {"stage": stage},
                    "evaluation": {"sets": {}},
                    "sparsity": one_shot(),
                }
                folder = train(world_size, run_config(text, tmp_path, name, **changes))
                assert column(folder, "sparsity/digest") == {1: want, 2: want}, name
                checkpoint = last_checkpoint(folder, 2)
                saved = contents(checkpoint)
                for parameter, mask in keep.items():
                    assert saved[MASK][parameter].numpy().tobytes() == mask.tobytes(), name
                    master = saved[MASTER][parameter]
                    assert not master[~saved[MASK][parameter]].view(torch.int32).any(), name
                    assert master[saved[MASK][parameter]].count_nonzero() == mask.sum(), name


def test_first_loss_and_gradient_norm_on_every_world_size(text: Text, tmp_path: Path) -> None:
    def first_step(world_size: int, stage: int) -> tuple[float, float]:
        changes = {"train": {"total_steps": 5, "log_interval_steps": 1}, "zero": {"stage": stage}}
        config = run_config(text, tmp_path, f"{world_size}-{stage}", **changes)
        folder = train(world_size, config, stop_after=1)
        return column(folder, "train/mlm_loss")[1], column(folder, "train/grad_norm")[1]

    loss, norm = first_step(1, 0)
    assert loss > 5 and norm > 0.1
    for world_size, stage in ((1, 3), (2, 0), (2, 2), (3, 1), (3, 3)):
        got_loss, got_norm = first_step(world_size, stage)
        assert got_loss == pytest.approx(loss, rel=FIRST_STEP_BOUND), (world_size, stage)
        assert got_norm == pytest.approx(norm, rel=FIRST_STEP_BOUND), (world_size, stage)


def test_validation_does_not_follow_the_share_masked_in_training(
    text: Text, tmp_path: Path
) -> None:
    def baseline(name: str, **changes: Any) -> list[float]:
        changes = {"train": {"total_steps": 2}, "sparsity": None, **changes}
        changes["evaluation"] = {"interval_steps": 2, **changes.get("evaluation", {})}
        folder = train(1, run_config(text, tmp_path, name, **changes))
        return column(folder, "validation/held-out/unigram_loss")

    usual = baseline("usual")
    assert baseline("more", data={"mlm_probability": 0.4}) == usual
    assert baseline("validation", evaluation={"mlm_probability": 0.4}) != usual


@pytest.mark.parametrize("micro_batch_rows", [1, 2])
def test_a_short_last_micro_step(text: Text, tmp_path: Path, micro_batch_rows: int) -> None:
    """5 rows on 3 ranks: one has one row, the others two; of 2 validation rows one has none."""
    changes = {
        "train": {
            "total_steps": 3,
            "global_batch_rows": 5,
            "micro_batch_rows": micro_batch_rows,
            "learning_rate": 1e-3,
        },
        "evaluation": {"interval_steps": 1, "rows": 2},
        "sparsity": None,
    }
    alone = train(1, run_config(text, tmp_path, "1", **changes, zero={"stage": 0}))
    for stage in (1, 3):
        folder = train(
            3, run_config(text, tmp_path, f"3-{stage}", **changes, zero={"stage": stage})
        )
        for figure in ("train/mlm_loss", "train/grad_norm"):
            got, want = column(folder, figure), column(alone, figure)
            assert got[1] == pytest.approx(want[1], rel=FIRST_STEP_BOUND), (stage, figure)
            assert got == pytest.approx(want, rel=LATER_STEPS_BOUND), (stage, figure)
        figure = "validation/held-out/mlm_loss"
        assert column(folder, figure) == pytest.approx(
            column(alone, figure), rel=LATER_STEPS_BOUND
        ), stage
        assert len(column(folder, figure)) == 3
        for figure in ("train/tokens_seen", "validation/held-out/unigram_loss"):
            assert column(folder, figure) == column(alone, figure)


@pytest.mark.parametrize(
    ("world_size", "stage", "precision"), [(1, 0, "fp32"), (2, 2, "bf16"), (3, 3, "fp32")]
)
def test_zero_sparsity_is_no_sparsity(
    text: Text, tmp_path: Path, world_size: int, stage: int, precision: str
) -> None:
    changes = {"train": {"precision": precision, **DROPOUT}, "zero": {"stage": stage}}
    nothing = {"initial_sparsity": 0.0, "final_sparsity": 0.0}
    zero = train(world_size, run_config(text, tmp_path, "zero", **changes, sparsity=nothing))
    dense = train(world_size, run_config(text, tmp_path, "dense", **changes, sparsity=None))
    got, want = contents(last_checkpoint(zero)), contents(last_checkpoint(dense))
    masks = got.pop(MASK)
    assert masks and all(keep.all() for keep in masks.values())
    assert differences(got, want) == []
    for figure in ("train/mlm_loss", "train/grad_norm", "validation/held-out/mlm_loss"):
        assert column(zero, figure) == column(dense, figure), figure


# Transfer.


@pytest.fixture(scope="module")
def source(text: Text, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A sparse run to start others from."""
    return train(2, run_config(text, tmp_path_factory.mktemp("source"), "source"))


@pytest.fixture(scope="module")
def exported(source: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(source.path, folder)
    return folder


def transfer(text: Text, folder: Path, init_from: Path, **train_fields: Any) -> dict[str, Any]:
    return {
        "text": text,
        "folder": folder,
        "model": {"init_from": init_from},
        "train": {"total_steps": 2, "precision": "bf16", **train_fields},
        "sparsity": FROZEN,
    }


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 3), (3, 1)])
def test_a_transfer_starts_from_the_exact_weights(
    text: Text, tmp_path: Path, source: RunFolder, world_size: int, stage: int
) -> None:
    """In bf16, at a rate that moves nothing: after two steps the masters are still the source's."""
    fields = transfer(text, tmp_path, source.path, learning_rate=NO_RATE)
    folder = train(world_size, run_config(**fields, name="still", zero={"stage": stage}))
    theirs, ours = last_checkpoint(source), last_checkpoint(folder, 2)
    want, got = contents(theirs), contents(ours)
    kept = (MASTER, MASK)
    assert differences({k: got[k] for k in kept}, {k: want[k] for k in kept}) == []
    assert any((w != w.bfloat16().float()).any() for w in want[MASTER].values())
    assert ours.state["sparsity"]["digest"] == theirs.state["sparsity"]["digest"]
    assert ours.optimizer_steps == 2 and ours.state["train"]["step"] == 2
    assert f"starting from model {theirs.path} at step 0" in worker_log(folder, 0)


def test_frozen_masks_stay_while_the_live_weights_train(
    text: Text, tmp_path: Path, source: RunFolder, exported: Path
) -> None:
    theirs = last_checkpoint(source)
    want = contents(theirs)
    ends = []
    for name, origin in (("run", source.path), ("checkpoint", theirs.path), ("export", exported)):
        folder = train(2, run_config(**transfer(text, tmp_path, origin), name=name))
        got = contents(last_checkpoint(folder, 2))
        assert set(column(folder, "sparsity/digest").values()) == {
            theirs.state["sparsity"]["digest"]
        }
        assert differences({MASK: got[MASK]}, {MASK: want[MASK]}) == []
        for parameter, keep in got[MASK].items():
            assert not got[MASTER][parameter][~keep].view(torch.int32).any()
            assert not got["exp_avg"][parameter][~keep].any()
            assert (got[MASTER][parameter] != want[MASTER][parameter])[keep].any()
        ends.append(got)
    # Whichever way the model came, training from it is the same.
    assert differences(ends[0], ends[1]) == differences(ends[0], ends[2]) == []


def test_without_a_mask_file_zeros_are_the_mask(
    text: Text, tmp_path: Path, source: RunFolder, exported: Path
) -> None:
    """A live weight that happens to be 0 stays alive with the file, and is pruned without it."""
    parameter = "encoder.layer.1.intermediate.dense.weight"
    want = contents(last_checkpoint(source))[MASK]
    at = int(want[parameter].nonzero()[0])
    with_file, without_file = tmp_path / "with", tmp_path / "without"
    for folder in (with_file, without_file):
        shutil.copytree(exported, folder)
        weights = load_file(folder / "model.safetensors")
        weights[f"bert.{parameter}"].view(-1)[at] = 0.0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (without_file / "keep_mask.safetensors").unlink()

    fields = transfer(text, tmp_path, with_file, learning_rate=NO_RATE)
    kept = train(1, run_config(**fields, name="kept"))
    assert "zeros are taken as the mask" not in worker_log(kept, 0)
    assert differences({MASK: contents(last_checkpoint(kept, 2))[MASK]}, {MASK: want}) == []

    fields = transfer(text, tmp_path, without_file)
    folder = train(3, run_config(**fields, name="guessed"))
    for rank in range(3):
        log = worker_log(folder, rank)
        assert f"{without_file} has no mask file: its zeros are taken as the mask" in log
    want[parameter][at] = False
    got = contents(last_checkpoint(folder, 2))
    assert differences({MASK: got[MASK]}, {MASK: want}) == []
    digest = expected_digest({name: keep.numpy() for name, keep in want.items()})
    assert column(folder, "sparsity/digest")[2] == digest
    assert not got[MASTER][parameter][at]


# Weights that cannot be ranked.


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 3), (3, 2)])
def test_infinite_weights_are_refused_by_all(
    text: Text, tmp_path: Path, exported: Path, world_size: int, stage: int
) -> None:
    """The first step's gradient is not finite: skipped. Then the masks are due: refused by all."""
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "keep_mask.safetensors").unlink()
    weights = load_file(broken / "model.safetensors")
    weights["bert.encoder.layer.0.attention.output.dense.weight"][-1, -1] = float("-inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    config = run_config(
        text,
        tmp_path,
        "run",
        model={"init_from": broken},
        zero={"stage": stage},
        sparsity=one_shot(prune_start_step=1),
    )
    errors = start(world_size, config)
    want = {"error": "NonFiniteWeights: a prunable weight is infinite or NaN"}
    assert errors == [want] * world_size
    folder = run_folder_of(config)
    assert list_steps(folder.checkpoints) == []
    assert column(folder, "train/skipped_steps") == {1: 1}
    for rank in range(world_size):
        assert "NonFiniteWeights" in worker_log(folder, rank)
    # The processes are in order: the next run of theirs works.
    train(world_size, run_config(text, tmp_path, "next", train={"total_steps": 5}), stop_after=1)
