"""Pretraining with a teacher: what the loss is, and that nothing else of the run knows of it."""

from pathlib import Path

import numpy as np
import pytest

from bert.pretrain import check_pretraining
from distributed.checkpoint.reading import MASTER
from distributed.errors import BadInput
from launch.models.export import export_checkpoint
from tests.multiprocess.runs import (
    STEPS,
    Text,
    column,
    contents,
    last_checkpoint,
    prepare_text,
    run_config,
    train,
)
from training.config import TrainConfig
from training.folder import RunFolder
from training.loop import compute_learning_rate


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def teacher(text: Text, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(1, run_config(text, tmp_path_factory.mktemp("teacher"), "teacher", sparsity=None))


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 2), (3, 3)])
def test_a_copy_of_the_teacher_has_nothing_to_learn(
    text: Text, tmp_path: Path, teacher: RunFolder, world_size: int, stage: int
) -> None:
    """Until the masks grow: then the student, and it alone, is no longer its teacher."""
    config = run_config(
        text,
        tmp_path,
        "student",
        model={"init_from": teacher.path},
        zero={"stage": stage},
        distillation={"teacher": teacher.path, "hardness": 1.0, "temperature": 2.0},
        train={"learning_rate": 1e-4},
        sparsity={"prune_start_step": 2, "prune_end_step": 4},
    )
    run = train(world_size, config)
    loss = column(run, "train/mlm_loss")
    assert abs(loss[1]) < 1e-7 and loss[STEPS] > 20 * abs(loss[2]), loss
    state = last_checkpoint(run).state
    prunable = sum(last_checkpoint(run).numels[name] for name in state["sparsity"]["pruned"])
    assert sum(state["sparsity"]["pruned"].values()) == round(0.8 * prunable)


def test_no_weight_of_the_teacher_is_no_teacher(
    text: Text, tmp_path: Path, teacher: RunFolder
) -> None:
    """Up to rounding: beside a teacher the logits exist whole, without one a chunk at a time.

    Adam's first steps have the size of the learning rate whatever the gradient's, so that rounding
    moves a weight with nearly none by a share of that: 1 % of the 6 steps of 5e-3 is the bound.
    """
    export_checkpoint(teacher.path, tmp_path / "exported")
    with_teacher = run_config(
        text, tmp_path, "with", distillation={"teacher": tmp_path / "exported", "hardness": 0.0}
    )
    got, want = train(2, with_teacher), train(2, run_config(text, tmp_path, "without"))
    ours, theirs = contents(last_checkpoint(got)), contents(last_checkpoint(want))
    for name, weights in theirs[MASTER].items():
        np.testing.assert_allclose(ours[MASTER][name], weights, rtol=0, atol=0.01 * STEPS * 5e-3)
    losses = column(got, "train/mlm_loss"), column(want, "train/mlm_loss")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rewinds_reach_the_optimizer(text: Text, tmp_path: Path) -> None:
    fields = {"lr_rewind_interval_steps": 2, "lr_rewind_end_step": 4, "warmup_steps": 0}
    config = run_config(text, tmp_path, "rewound", train=fields)
    rates = column(train(1, config), "train/learning_rate")
    assert rates == {
        step: pytest.approx(5e-3 * share)
        for step, share in enumerate([1, 0.5, 1, 0.5, 1, 0.5], start=1)
    }
    assert isinstance(config.train, TrainConfig) and compute_learning_rate(config.train, 4) == 5e-3


def test_a_teacher_that_is_not_there(text: Text, tmp_path: Path) -> None:
    config = run_config(text, tmp_path, "x", distillation={"teacher": tmp_path / "nobody"})
    with pytest.raises(BadInput, match="nobody does not exist"):
        check_pretraining(config)
