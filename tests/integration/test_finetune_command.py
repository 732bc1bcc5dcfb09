"""`sparsebert finetune` and `compare` as a user meets them: real processes, tiny models."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed.errors import BadInput
from launch.config_loading import load_config
from launch.models.export import export_checkpoint
from launch.study.plan import StudyConfig
from launch.study.run import compare
from tests.multiprocess import runs, tasks

ROOT = Path(__file__).parents[2]


def sparsebert(
    *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sparse run, and a dense model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models")
    text = runs.prepare_text(folder)
    sparse = runs.train(1, runs.run_config(text, folder, "sparse"))
    dense = runs.train(1, runs.run_config(text, folder, "dense", sparsity=None))
    export_checkpoint(dense.path, folder / "exported")
    return {"sparse": sparse.path, "dense": folder / "exported"}


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate((("train", 40), ("dev", 10), ("test", 12))):
        tasks.write_sentences(tmp_path / f"{name}.tsv", count, seed)
    fields: dict[str, Any] = {
        "name": "words",
        "task": {
            "kind": "classification",
            **{name: str(tmp_path / f"{name}.tsv") for name in ("train", "dev", "test")},
            "metrics": ["accuracy"],
            "max_seq_len": 32,
        },
        "train": {"epochs": 1, "global_batch_rows": 8, "micro_batch_rows": 8, "precision": "fp32",
                  "learning_rate": 1e-3},
        "launch": {"use_gpu": False, "runs_dir": str(tmp_path / "runs"), "num_workers": 1},
    }  # fmt: skip
    file = tmp_path / "words.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


@pytest.mark.cluster
def test_ray_trains_each_seed(
    models: dict[str, Path], task_file: Path, cluster: dict[str, str]
) -> None:
    arguments = [task_file, f"model.init_from={models['sparse']}", "launch.num_workers=2",
                 "launch.cpus_per_worker=0.5"]  # fmt: skip
    done = sparsebert("finetune", *arguments, "--json", env=cluster)
    assert done.returncode == 0, done.stderr
    file = task_file.parent / "runs" / "words" / "seed-1" / "results.json"
    found = json.loads(file.read_text())
    assert found["test"]["accuracy"] >= 0 and found["sparsity"]["over_prunable"] == pytest.approx(
        0.8, abs=1e-3
    )
    lines = (task_file.parent / "train.tsv").read_text().splitlines()[1:]
    bad = sum(line.endswith("0") for line in lines)
    assert found["classes"]["train"] == {"0": bad, "1": len(lines) - bad}
    told = f"train: {len(lines)} examples; of each class: 0 ({bad}), 1 ({len(lines) - bad})"
    assert told in done.stdout and done.stdout.index(told) < done.stdout.index("step ")
    again = sparsebert("finetune", *arguments, env=cluster)
    assert again.returncode == 0 and "is complete" in again.stdout
    other = sparsebert("finetune", *arguments, f"model.init_from={models['dense']}", env=cluster)
    assert other.returncode == 2 and "the content of model.init_from was" in other.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sentence\tlabel\ngood\t1\nodd\t7\n", "test.tsv line 3 has the label '7'"),
        (
            '{"sentence": {"words": "good"}, "label": 1}\n',
            "test.tsv line 1 has an object in the column sentence, where a text or a list of texts "
            "must be: task.columns can name sentence.words",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(
    models: dict[str, Path], task_file: Path, text: str, told: str
) -> None:
    (task_file.parent / "test.tsv").write_text(text)
    done = sparsebert("finetune", task_file, f"model.init_from={models['dense']}", "--local")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not (task_file.parent / "runs").exists()


@pytest.mark.cluster
def test_a_study_runs_what_is_missing(models: dict[str, Path], task_file: Path) -> None:
    folder = task_file.parent / "runs" / "tiny"
    fields = {
        "name": "tiny",
        "runs_dir": str(folder.parent),
        "models": {
            "dense": {"init_from": str(models["dense"])},
            "sparse": {"init_from": str(models["sparse"]), "twin": "dense"},
            "student": {"init_from": str(models["sparse"]), "twin": "dense", "distillation": {}},
        },
        "tasks": {"words": {"config": str(task_file), "published": {"somebody": 99.0}}},
        "seeds": [1, 2],
        "learning_rates": [1e-3, 5e-3],
        "parallel": 2,
    }
    file = task_file.parent / "study.yaml"
    file.write_text(yaml.safe_dump(fields))
    done = sparsebert("compare", file, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["model"] for row in rows} == {"dense", "sparse", "student"}
    for row in rows:
        assert len(row["scores"]) == 2 and row["interval95"] is not None
    sparse = [row for row in rows if row["model"] == "sparse"]
    assert all(row["kept_of_prunable"] == pytest.approx(0.2, abs=1e-3) for row in sparse)
    assert all(row["recovery"] > 0 for row in sparse)
    names = {row["model"]: row for row in rows if row["model"] in row["rate_of"]}
    for model, row in names.items():
        tried = folder.glob(f"words.{model}.lr*/seed-1/results.json")
        dev = {r["learning_rate"]: r["dev"]["accuracy"] for r in map(_read, tried)}
        assert len(dev) == 2 and dev[row["learning_rate"]] == max(dev.values())
    teacher = folder / f"words.dense.lr{names['dense']['learning_rate']:g}" / "seed-1"
    for config in folder.glob("words.*/seed-*/config.yaml"):
        taught = yaml.safe_load(config.read_text())["distillation"]
        is_student = config.parent.parent.name.startswith("words.student.")
        assert taught == (
            {"teacher": str(teacher), "temperature": 2.0, "hardness": 0.5} if is_student else None
        )
    logs = {log: log.stat().st_mtime_ns for log in folder.glob("*.log")}
    again = sparsebert("compare", file)
    assert again.returncode == 0 and "Published scores" in again.stdout
    assert logs == {log: log.stat().st_mtime_ns for log in folder.glob("*.log")}, "nothing ran"

    tasks.write_sentences(task_file.parent / "test.tsv", 12, 77)
    changed = sparsebert("compare", file)
    assert changed.returncode == 2 and "the content of task.train, task.dev or task.test was" in (
        changed.stderr
    )
    # Runs that made a class of each label with a blank: their scores stay, and stay alone.
    test_file = tasks.write_sentences(task_file.parent / "test.tsv", 12, 2)
    test_file.write_text(test_file.read_text().replace("\t1\n", "\t1 \n"))
    for identity_file in folder.glob("words.*/seed-*/identity.json"):
        identity = _read(identity_file)
        del identity["task"]["reading"]
        identity["task"]["fingerprint"] = "0" * 64
        identity_file.write_text(json.dumps(identity))
    study = load_config(file, [], root=StudyConfig).resolved()
    assert compare(study, quiet=True) == rows
    more = study.model_copy(update={"seeds": [1, 2, 3]})
    with pytest.raises(BadInput, match="read the files of the task words under earlier rules"):
        compare(more, quiet=True)
    fields["overrides"] = ["train.epochs=2"]
    file.write_text(yaml.safe_dump(fields))
    changed = sparsebert("compare", file)
    assert changed.returncode == 2
    (line,) = changed.stderr.splitlines()
    assert (
        line.startswith(f"error: {folder}/words.dense.lr0.001/seed-1 ") and "train.epochs" in line
    )


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.cluster
def test_a_stopped_study_says_so_and_goes_on(models: dict[str, Path], task_file: Path) -> None:
    folder = task_file.parent / "runs" / "stopped"
    fields = {
        "name": "stopped",
        "runs_dir": str(folder.parent),
        "models": {"dense": {"init_from": str(models["dense"])}},
        "tasks": {"words": {"config": str(task_file), "overrides": ["train.epochs=3000"]}},
        "seeds": [1],
        "learning_rates": [1e-3],
    }
    file = task_file.parent / "study.yaml"
    file.write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "launch", "compare", str(file)]
    study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    run = folder / "words.dense.lr0.001" / "seed-1"
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and study.poll() is None
        time.sleep(0.2)
    study.terminate()
    out, _ = study.communicate(timeout=200)
    assert study.returncode == 75 and "words.dense.lr0.001 is stopped and saved" in out
    assert not (run / "results.json").exists() and list((run / "checkpoints").glob("step-*"))
