import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distributed.checkpoint.reading import list_steps
from distributed.errors import BadInput
from launch.__main__ import app
from launch.models.repair import compare, repair
from tests.unit.conftest import damage
from training.folder import RunFolder
from training.lease import hold

MakeRun = Callable[..., RunFolder]


def test_a_copy_is_equal_and_another_step_is_not(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10, 20)
    one, other = (run.checkpoints / f"step-000000{step}" for step in (10, 20))
    shutil.copytree(other, tmp_path / "copy")
    assert compare(run.path, tmp_path / "copy")["equal"], "a run is its newest good checkpoint"
    report = compare(one, other)
    assert not report["equal"] and report["steps"] == [10, 20]
    lines = "\n".join(report["differences"])
    assert "step: 10 and 20" in lines and "train: step 10 and 20" in lines
    assert "master of embeddings.word_embeddings.weight: " in lines and "by at most" in lines
    assert "keep_mask of encoder.layer.0.attention.self.query.weight: " in lines


def test_dense_and_sparse_differ(make_run: MakeRun, tmp_path: Path) -> None:
    sparse = make_run(10)
    kept = Path(shutil.copytree(sparse.checkpoints / "step-00000010", tmp_path / "sparse"))
    shutil.rmtree(sparse.path)
    dense = make_run(10, dense=True)
    lines = compare(kept, dense.path)["differences"]
    assert f"keep_mask: only in {kept}" in lines


def test_the_commands_exit_code_tells_equality(make_run: MakeRun) -> None:
    run = make_run(10, 20)
    one, other = (str(run.checkpoints / f"step-000000{step}") for step in (10, 20))
    same = CliRunner().invoke(app, ["inspect", one, "--compare", one])
    assert (same.exit_code, same.output.splitlines()[1:]) == (0, ["equal, bit for bit"])
    differ = CliRunner().invoke(app, ["inspect", one, "--compare", other, "--json"])
    assert differ.exit_code == 1 and json.loads(differ.output)["equal"] is False


def test_repair_goes_back_to_the_newest_good_one(make_run: MakeRun) -> None:
    run = make_run(10, 20, 30)
    for step in (20, 30):
        damage(run.checkpoints / f"step-000000{step}")
    (run.checkpoints / ".step-00000040.dead").mkdir()
    done = CliRunner().invoke(app, ["inspect", str(run.path), "--repair"])
    assert done.exit_code == 0, done.output
    assert done.output.count("refused: ") == done.output.count("moved away: ") == 2
    assert "the newest good checkpoint is" in done.output and "step-00000010" in done.output
    assert list_steps(run.checkpoints) == [10]
    hidden = sorted(path.name for path in run.checkpoints.glob(".*") if path.is_dir())
    assert hidden == [".refused-step-00000020", ".refused-step-00000030"]


def test_nothing_is_repaired_that_is_not_a_run_or_in_use(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no run folder"):
        repair(tmp_path / "nowhere")
    run = make_run(10)
    with hold(run.path), pytest.raises(BadInput, match="being trained by process"):
        repair(run.path)
    damage(run.checkpoints / "step-00000010")
    with pytest.raises(BadInput, match="none is good"):
        repair(run.path)
