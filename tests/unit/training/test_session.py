"""Which first weights a run that goes on began with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bert.config import DistillationConfig, PretrainConfig
from bert.origins import (
    fingerprint_first_weights,
    resolve_teacher,
    source_fingerprint,
    teacher_path,
)
from bert.pretrain import Pretraining
from distributed.checkpoint.reading import step_folder
from distributed.errors import BadInput
from launch.config_loading import load_config
from training.folder import RunFolder
from training.recipe import RunPlan
from training.session import begin_run

OLD = "a" * 64


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[Path | None], RunFolder]:
    """The folder of a run that started from the path given."""

    def begin(init_from: Path | None) -> RunFolder:
        folder = RunFolder(tmp_path / "begun")
        folder.path.mkdir(exist_ok=True)
        source = None if init_from is None else str(init_from)
        folder.write_config(yaml.safe_dump({"model": {"init_from": source}}))
        return folder

    return begin


def test_the_same_source_is_history_whatever_became_of_it(
    begun: Callable[[Path | None], RunFolder],
) -> None:
    assert fingerprint_first_weights(begun(Path("/gone")), Path("/gone"), OLD) == OLD
    assert fingerprint_first_weights(begun(None), None, None) is None
    assert fingerprint_first_weights(begun(Path("/gone")), None, OLD) is None, (
        "it began with weights"
    )


def test_another_source_counts_by_its_weights(
    begun: Callable[[Path | None], RunFolder],
    make_run: Callable[..., RunFolder],
    tmp_path: Path,
) -> None:
    source = make_run(7).path
    old = source_fingerprint(source)
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    folder = begun(source)
    assert fingerprint_first_weights(folder, copy, old) == old
    shutil.rmtree(copy)
    make_run(8)
    shutil.copytree(source, copy)
    assert fingerprint_first_weights(folder, copy, old) != old
    assert fingerprint_first_weights(folder, None, old) is None
    with pytest.raises(BadInput, match="does not exist"):
        fingerprint_first_weights(folder, tmp_path / "nowhere", old)


def test_without_a_record_the_weights_are_looked_at(
    begun: Callable[[Path | None], RunFolder], make_run: Callable[..., RunFolder]
) -> None:
    source, folder = make_run(7).path, begun(None)
    folder.config_file.write_text("model: [")
    assert fingerprint_first_weights(folder, source, OLD) == source_fingerprint(source)
    assert fingerprint_first_weights(folder, None, None) is None


@pytest.fixture
def config(write_config: Callable[..., Path]) -> PretrainConfig:
    return load_config(write_config())


def new_plan(seed: int) -> RunPlan:
    return RunPlan(
        identity={"seed": seed},
        init_from=None,
        teacher=None,
        finished_steps=0,
        total_steps=10,
        is_complete=False,
    )


def test_another_run_that_began_meanwhile(config: PretrainConfig) -> None:
    """Between the check and the lease another launcher may have begun a run of that name."""
    plans = [new_plan(seed) for seed in (1, 2)]
    begin_run(Pretraining(config), plans[0])
    begin_run(Pretraining(config), plans[0])
    with pytest.raises(BadInput, match="seed"):
        begin_run(Pretraining(config), plans[1])


def test_a_teacher_stays_who_it_was(make_run: Callable[..., RunFolder]) -> None:
    teacher = make_run(7)
    taught = DistillationConfig(teacher=teacher.path)
    settled = resolve_teacher(taught)
    first = teacher_path(settled)
    assert first == str(step_folder(teacher.checkpoints, 7))
    make_run(9)
    assert teacher_path(resolve_teacher(taught)) != first, "it trains on"
    assert resolve_teacher(taught, first) == settled
    assert resolve_teacher(None) is None and teacher_path(None) is None
