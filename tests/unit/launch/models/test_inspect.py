import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from bert.architecture import is_prunable
from bert.folders.source import open_source
from distributed.checkpoint.manifest import seal
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, step_folder
from distributed.errors import BadInput
from launch.models.export import export_checkpoint
from launch.models.inspect import describe, render
from tests.unit.conftest import damage
from training.folder import RunFolder

MakeRun = Callable[..., RunFolder]


def rewrite_manifest(checkpoint: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    manifest.pop("sha256")
    file.write_bytes(seal(manifest))


def revive_a_weight(checkpoint: Path) -> None:
    """Make one pruned weight of rank 0's file nonzero, checksum included."""
    file = checkpoint / "rank-00000.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    key = next(key for key in tensors if key.startswith("master|encoder") and "query.weight" in key)
    tensors[key][(tensors[key] == 0).nonzero()[0]] = 0.5
    save_file(tensors, file)
    import hashlib

    def update(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["files"][file.name] = {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }

    rewrite_manifest(checkpoint, update)


def shown(report: dict) -> str:  # type: ignore[type-arg]
    text = io.StringIO()
    Console(file=text, width=160).print(render(report))
    return text.getvalue()


def test_checkpoint(make_run: MakeRun) -> None:
    run = make_run(60)
    run.metrics_file.write_text(
        '{"step": 50, "validation/general/mlm_loss": 6.0}\n'
        '{"step": 60, "train/mlm_loss": 5.0}\n'
        '{"step": 70, "validation/general/mlm_loss": 1.0}\n'
    )
    path = step_folder(run.checkpoints, 60)
    report = describe(path)
    assert json.loads(json.dumps(report)) == report
    expected = {
        "kind": "checkpoint",
        "path": str(path),
        "name": "demo",
        "step": 60,
        "total_steps": 100,
        "tokens_seen": 60 * 256,
        "world_size": 2,
        "zero_stage": 2,
        "precision": "bf16",
        "stored": ["exp_avg", "keep_mask", "master"],
        "validation": {"general": 6.0},
        "problems": [],
        "versions": {"torch": "2.13.0"},
    }
    assert {key: report[key] for key in expected} == expected

    checkpoint = Checkpoint(path)
    keeps = {
        name: checkpoint.reader(MASK)(name, 0, numel)
        for name, numel in checkpoint.numels.items()
        if is_prunable(name)
    }
    sparsity = report["sparsity"]
    prunable = 2 * (4 * 16 * 16 + 2 * 16 * 24)
    pruned = sum(int((~keep).sum()) for keep in keeps.values())
    total = sum(checkpoint.numels.values())
    assert report["parameters"] == total
    assert (sparsity["prunable"], sparsity["pruned"]) == (prunable, pruned)
    assert sparsity["over_prunable"] == 0.75
    assert sparsity["over_all"] == pruned / total
    assert sparsity["digest"] == checkpoint.state["sparsity"]["digest"]
    assert set(sparsity["by_parameter"]) == set(keeps)
    for name, count in sparsity["by_parameter"].items():
        zeros = int((checkpoint.reader(MASTER)(name, 0, keeps[name].numel()) == 0).sum())
        assert count["pruned"] == int((~keeps[name]).sum()) == zeros == count["zeros"]
        assert count["pruned_not_zero"] == 0
    assert report["bytes"] == sum(file.stat().st_size for file in path.iterdir())


def test_run(make_run: MakeRun) -> None:
    run = make_run(40, 60, 80)
    damage(step_folder(run.checkpoints, 80))
    shutil.rmtree(run.tensorboard)
    report = describe(run.path)
    assert (report["kind"], report["path"], report["step"]) == ("run", str(run.path), 60)
    assert report["checkpoint"] == str(step_folder(run.checkpoints, 60))
    assert [(c["step"], c["good"]) for c in report["checkpoints"]] == [
        (40, True),
        (60, True),
        (80, False),
    ]
    assert "is damaged" in report["checkpoints"][2]["reason"]
    text = shown(report)
    assert "60 of 100" in text
    assert "75.0000% of 3,584 prunable weights" in text
    assert report["sparsity"]["digest"] in text
    assert "damaged: " in text
    assert "problem" not in text


def test_dense(make_run: MakeRun) -> None:
    report = describe(make_run(10, dense=True).path)
    assert report["sparsity"] is None
    assert report["problems"] == []
    assert "dense" in shown(report)


def test_a_manifest_with_little_in_its_state(make_run: MakeRun) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    rewrite_manifest(path, lambda manifest: manifest.update(state={}))
    report = describe(path)
    assert report["sparsity"]["over_prunable"] == 0.75
    assert report["problems"] == []
    assert report["name"] == "demo", "the folder's"
    assert "unknown" in shown(report)


def test_validation_from_the_manifest_where_there_is_no_metrics_file(make_run: MakeRun) -> None:
    run = make_run(10, metrics={"step": 10, "validation/general/mlm_loss": 4.5})
    assert describe(run.path)["validation"] == {"general": 4.5}


def test_a_manifest_that_lies(make_run: MakeRun) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    name = "encoder.layer.0.attention.self.query.weight"

    def lie(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["state"]["sparsity"]["digest"] = "0" * 16
        manifest["state"]["sparsity"]["pruned"][name] += 1

    rewrite_manifest(path, lie)
    report = describe(path)
    assert len(report["problems"]) == 2
    assert "mask digest is 0000000000000000" in report["problems"][0]
    assert name in report["problems"][1]
    assert "problem: " in shown(report)
    with pytest.raises(BadInput, match="contradicts itself"):
        export_checkpoint(path, run.path / "out")


def test_a_pruned_weight_that_is_not_zero(make_run: MakeRun) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    revive_a_weight(path)
    assert describe(path)["problems"] == [
        "1 pruned weights of encoder.layer.0.attention.self.query.weight are not zero"
    ]
    # New masks take effect in the next applied step.
    rewrite_manifest(path, lambda m: m["state"]["sparsity"].update(pending=True))
    assert describe(path)["problems"] == []


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda run, path: damage(path), "SHA-256"),
        (lambda run, path: (path / "rank-00001.safetensors").unlink(), "is missing"),
        (lambda run, path: (path / "manifest.json").write_text("{"), "is not readable"),
        (lambda run, path: (path / "manifest.json").unlink(), "has no checkpoints and no manifest"),
        (lambda run, path: shutil.rmtree(path), "does not exist"),
    ],
)
def test_what_cannot_be_described(
    make_run: MakeRun, break_it: Callable[[RunFolder, Path], None], expected: str
) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    break_it(run, path)
    with pytest.raises(BadInput, match=expected):
        describe(path)
    with pytest.raises(BadInput, match="the run .* has no"):
        describe(run.path)


def test_export(make_run: MakeRun, tmp_path: Path, vocab: Path) -> None:
    run = make_run(10, 20)
    output = tmp_path / "out"
    report = export_checkpoint(run.path, output)
    assert report.step == 20
    assert not report.already_done
    assert report.over_prunable == 0.75
    checkpoint = Checkpoint(step_folder(run.checkpoints, 20))
    exported = open_source(output).read()
    assert exported.digest == report.digest == checkpoint.state["sparsity"]["digest"]
    assert exported.masks is not None
    for name, weight in exported.weights.items():
        assert torch.equal(weight, checkpoint.reader(MASTER)(name, 0, weight.numel()))
    for name, keep in exported.masks.items():
        assert torch.equal(keep, checkpoint.reader(MASK)(name, 0, keep.numel()))
    AutoModelForMaskedLM.from_pretrained(output, local_files_only=True)

    assert export_checkpoint(run.path, output).already_done
    with pytest.raises(BadInput, match="holds something else"):
        export_checkpoint(step_folder(run.checkpoints, 10), output)
    with pytest.raises(BadInput, match="is a Hugging Face folder already"):
        export_checkpoint(output, tmp_path / "again")

    moved = vocab.rename(tmp_path / "moved.txt")
    with pytest.raises(BadInput, match="give its place with --vocab FILE"):
        export_checkpoint(run.path, tmp_path / "again")
    assert not export_checkpoint(run.path, tmp_path / "again", vocab=moved).already_done
    moved.write_text(moved.read_text().replace("\na\n", "\n1\n"))
    with pytest.raises(BadInput, match="was trained with another vocabulary"):
        export_checkpoint(run.path, tmp_path / "third", vocab=moved)
    assert not (tmp_path / "third").exists()


def test_export_of_a_dense_run(make_run: MakeRun, tmp_path: Path) -> None:
    report = export_checkpoint(make_run(10, dense=True).path, tmp_path / "out")
    assert (report.over_prunable, report.digest) == (None, None)
    assert open_source(tmp_path / "out").read().masks is None


def test_export_enforces_a_pending_mask(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    revive_a_weight(path)
    with pytest.raises(BadInput, match="are not zero"):
        export_checkpoint(path, tmp_path / "out")
    rewrite_manifest(path, lambda m: m["state"]["sparsity"].update(pending=True))
    export_checkpoint(path, tmp_path / "out")
    exported = open_source(tmp_path / "out").read()
    assert exported.masks is not None
    assert not any(exported.weights[n][~keep].any() for n, keep in exported.masks.items())


def test_export_of_a_checkpoint_that_is_not_bert(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    path = step_folder(run.checkpoints, 10)
    rewrite_manifest(path, lambda m: m["state"]["config"]["model"].update(num_layers=3))
    with pytest.raises(BadInput, match=r"does not fit its own configuration .* at encoder.layer.2"):
        export_checkpoint(path, tmp_path / "out")
    rewrite_manifest(path, lambda m: m["state"].pop("config"))
    with pytest.raises(BadInput, match="does not describe a model"):
        export_checkpoint(path, tmp_path / "out")
