"""`sparsebert export --format sparse` and `sparsebert bench`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.models.export import export_checkpoint
from sparsebert import load_sparse
from tests.unit.sparsebert.inference.models import build
from training.folder import RunFolder

ROOT = Path(__file__).parents[4]
MakeRun = Callable[..., RunFolder]


def sparsebert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_run_is_exported_for_serving(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    done = sparsebert("export", run.path, tmp_path / "out", "--format", "sparse", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] > 0
    export_checkpoint(run.path, tmp_path / "dense")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "sparse.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert {file.name for file in tmp_path.iterdir()} >= {"out", "dense"}
    assert not list(tmp_path.glob(".export-*"))
    from transformers import BertForMaskedLM

    wanted = BertForMaskedLM.from_pretrained(tmp_path / "dense").state_dict()
    found = load_sparse(tmp_path / "out", dense=True).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_folder_is_exported_for_serving(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "dense")
    done = sparsebert("export", tmp_path / "dense", tmp_path / "out", "--format", "sparse")
    assert done.returncode == 0, done.stderr
    assert "open it with sparsebert.load_sparse" in done.stdout
    done = sparsebert("export", tmp_path / "dense", tmp_path / "out", "--format", "sparse")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "exists already" in done.stderr


def test_int8_values(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "dense")
    options = ["--format", "sparse", "--values", "int8"]
    done = sparsebert("export", tmp_path / "dense", tmp_path / "out", *options, "--json")
    assert done.returncode == 0, done.stderr
    dense = (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert json.loads(done.stdout)["bytes"] < 0.7 * dense
    assert "values=int8" in repr(load_sparse(tmp_path / "out"))
    done = sparsebert("export", tmp_path / "dense", tmp_path / "other", "--values", "int8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "add --format sparse" in done.stderr and not (tmp_path / "other").exists()


def test_bench(tmp_path: Path) -> None:
    build(density=0.1).save_pretrained(tmp_path / "dense")
    options = ["--batch", "1,2", "--seq", "9", "--rounds", "1", "--seconds", "5"]
    done = sparsebert("bench", tmp_path / "dense", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr, "once for each engine"
    report = json.loads(done.stdout)
    shapes = {(f["engine"], f["batch"], f["length"], f["threads"]) for f in report["figures"]}
    assert shapes == {(e, b, 9, 1) for e in ("sparse", "torch") for b in (1, 2)}
    assert all(f["median_ms"] > 0 and f["largest_difference"] < 2e-5 for f in report["figures"])
    assert report["processor"] and report["versions"]["torch"] and 0.05 < report["density"] < 0.15


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--engines", "sparse,magic"], "no engine magic"),
        (["--batch", "1,x"], "--batch is '1,x'"),
        (["--seq", "9999"], "at most 512 tokens"),
    ],
)
def test_what_bench_refuses(tmp_path: Path, options: list[str], named: str) -> None:
    build().save_pretrained(tmp_path / "dense")
    done = sparsebert("bench", tmp_path / "dense", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr.splitlines()[-1]


def test_bench_of_no_folder(tmp_path: Path) -> None:
    done = sparsebert("bench", tmp_path)
    assert done.returncode == 2
    assert "is no Hugging Face folder" in done.stderr
