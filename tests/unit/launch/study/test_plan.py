"""A study's plan and its table, on results written by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.study.plan import (
    StudyConfig,
    StudyRun,
    choose_rates,
    final_runs,
    finetune_overrides,
    grid_runs,
)
from launch.study.report import build_rows, compute_interval, write_report

MODELS = ["dense", "sparse"]
NO_STUDENT = ("dense", "ner", 1e-4, (1,), True)


def study(tmp_path: Path, **fields: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "s",
            "runs_dir": tmp_path,
            "models": {"dense": {"init_from": "a"}, "sparse": {"init_from": "b", "twin": "dense"}},
            "tasks": {"ner": {"config": "n.yaml", "published": {"BioBERT": 89.13}}},
            "seeds": [1, 2, 3],
            "learning_rates": [1e-4, 3e-4],
            "grid_seeds": 2,
            **fields,
        }
    )


def test_the_grid_leaves_test_alone(tmp_path: Path) -> None:
    runs = list(grid_runs(study(tmp_path), MODELS, {}))
    assert [r.name for r in runs] == [
        "ner.dense.lr0.0001", "ner.dense.lr0.0003", "ner.sparse.lr0.0001", "ner.sparse.lr0.0003",
    ]  # fmt: skip
    assert all(r.seeds == (1, 2) and not r.score_test for r in runs)
    assert list(grid_runs(study(tmp_path, learning_rates=[1e-4]), MODELS, {})) == []


def test_a_task_may_have_a_grid_of_its_own(tmp_path: Path) -> None:
    task = {"config": "n.yaml"}
    tasks = {"ner": task, "sst2": {**task, "learning_rates": [1e-3]}}
    tasks["re"] = {**task, "learning_rates": [1e-4, 3e-4, 9e-4]}
    config = study(tmp_path, tasks=tasks)
    runs = list(grid_runs(config, ["dense"], {}))
    assert [(r.task, r.learning_rate) for r in runs] == [
        ("ner", 1e-4), ("ner", 3e-4), ("re", 1e-4), ("re", 3e-4), ("re", 9e-4),
    ]  # fmt: skip
    scores = dict(zip(runs, [0.5, 0.4, 0.1, 0.2, 0.3], strict=True))
    chosen = choose_rates(config, ["dense"], scores)
    assert {task: rates["dense"] for task, rates in chosen.items()} == {
        "ner": 1e-4, "sst2": 1e-3, "re": 9e-4,
    }  # fmt: skip


def test_a_rate_stands_once_in_a_grid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning_rates of ner has a rate twice"):
        study(tmp_path, learning_rates=[1e-4, 0.0001])
    with pytest.raises(ValueError, match="learning_rates of re has a rate twice"):
        study(tmp_path, tasks={"re": {"config": "n.yaml", "learning_rates": [1, 1.0]}})


def test_dev_chooses_and_the_twins_rate_is_tried_too(tmp_path: Path) -> None:
    scores = dict(zip(grid_runs(study(tmp_path), MODELS, {}), [0.8, 0.9, 0.7, 0.7], strict=True))
    chosen = choose_rates(study(tmp_path), MODELS, scores)
    assert chosen == {"ner": {"dense": 3e-4, "sparse": 1e-4}}  # of equal ones the smaller
    final = final_runs(study(tmp_path), MODELS, chosen)
    assert [(r.model, r.learning_rate) for r in final] == [
        ("dense", 3e-4), ("sparse", 1e-4), ("sparse", 3e-4),
    ]  # fmt: skip
    assert all(r.seeds == (1, 2, 3) and r.score_test for r in final)
    same = final_runs(study(tmp_path), MODELS, {"ner": {"dense": 3e-4, "sparse": 3e-4}})
    assert len(same) == 2


def with_student(tmp_path: Path, **fields: Any) -> StudyConfig:
    terms = {"temperature": 5.5, "hardness": 1.0}
    models = {
        "student": {"init_from": "b", "twin": "dense", "distillation": terms},
        "dense": {"init_from": "a"},
        "sparse": {"init_from": "b", "twin": "dense"},
    }
    return study(tmp_path, **{"models": models, **fields})


def test_a_student_learns_from_its_twins_run_of_the_task(tmp_path: Path) -> None:
    config = with_student(tmp_path, seeds=[4, 5])
    assert config.stages == [["dense", "sparse"], ["student"]]
    chosen = {"ner": {"dense": 3e-4, "sparse": 1e-4}}
    teacher = tmp_path / "s" / "ner.dense.lr0.0003" / "seed-4"
    grid = list(grid_runs(config, ["student"], chosen))
    chosen["ner"]["student"] = 1e-4
    final = final_runs(config, ["student"], chosen)
    assert [r.learning_rate for r in final] == [1e-4, 3e-4]
    assert all(r.teacher == teacher for r in (*grid, *final))
    assert all(r.teacher is None for r in final_runs(config, MODELS, chosen))
    *_, override = finetune_overrides(config, final[0])
    name, _, value = override.partition("=")
    assert name == "distillation"
    assert yaml.safe_load(value) == {"teacher": str(teacher), "temperature": 5.5, "hardness": 1.0}
    assert not any("distillation" in o for o in finetune_overrides(config, StudyRun(*NO_STUDENT)))


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ({"a": {"init_from": "a", "distillation": {}}}, r"models.a.distillation needs a twin"),
        (
            {
                "a": {"init_from": "a"},
                "b": {"init_from": "b", "twin": "a", "distillation": {}},
                "c": {"init_from": "c", "twin": "b", "distillation": {}},
            },
            r"models.c.twin is b, which has distillation itself",
        ),
        ({"a": {"init_from": "a", "twin": "z"}}, r"models.a.twin is z, which is no model here"),
    ],
)
def test_no_such_teacher(tmp_path: Path, models: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        study(tmp_path, models=models)


def results(scores: list[float], sparsity: float) -> list[dict[str, Any]]:
    kept = round(1000 * (1 - sparsity))
    return [
        {
            "main_metric": "entity_f1",
            "dev": {"entity_f1": s + 0.01},
            "test": {"entity_f1": s},
            "sparsity": {"over_prunable": sparsity, "parameters_kept": 500 + kept,
                         "parameters": 1500},
        }
        for s in scores
    ]  # fmt: skip


def test_the_table(tmp_path: Path) -> None:
    config = study(tmp_path)
    chosen = {"ner": {"dense": 3e-4, "sparse": 1e-4}}
    dense, own, twins = final_runs(config, MODELS, chosen)
    found = {
        dense: results([0.80, 0.82, 0.84], 0.0),
        own: results([0.79, 0.80, 0.81], 0.9),
        twins: results([0.70, 0.75, 0.80], 0.9),
    }
    rows = build_rows(config, chosen, found)
    assert [row["mean"] for row in rows] == pytest.approx([82, 80, 75])
    # t(0.975, 2) = 4.302653 (any table of Student's t), times s / sqrt(3)
    widths = [4.302653 * s / 3**0.5 for s in (2, 1, 5)]
    assert [row["interval95"] for row in rows] == pytest.approx(widths, rel=1e-6)
    assert rows[0]["recovery"] is None
    assert [row["recovery"] for row in rows[1:]] == pytest.approx([80 / 82, 75 / 82])
    assert [row["rate_of"] for row in rows] == [["dense"], ["sparse"], ["dense"]]
    assert [row["kept_of_prunable"] for row in rows] == pytest.approx([1, 0.1, 0.1])
    assert [row["kept_of_all"] for row in rows] == pytest.approx([1, 600 / 1500, 600 / 1500])

    config.folder.mkdir()
    files = {file.name for file in write_report(config, rows)}
    assert {"table.md", "table.csv", "table.json"} <= files
    table, published = (config.folder / "table.md").read_text().split("\n\nPublished")
    assert "| 80.00 (3) | ± 2.48 | 97.6% | 10.0% | 40.0% |" in table
    assert "0.0003 (dense's) | 75.00" in table and "89.13" not in table
    assert "BioBERT 89.13" in published
    with open(config.folder / "table.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["mean"]) for line in lines] == pytest.approx([82, 80, 75])
    assert json.loads((config.folder / "table.json").read_text())["rows"][1]["scores"] == [
        79,
        80,
        81,
    ]


def test_one_seed_has_no_interval() -> None:
    assert compute_interval([80.0]) is None
    assert compute_interval([80.0, 80.0]) == 0


def test_a_task_without_test_says_dev(tmp_path: Path) -> None:
    config = study(tmp_path, learning_rates=[1e-4])
    run = StudyRun(*NO_STUDENT)
    only_dev = [{**results([0.5], 0.0)[0], "test": None}]
    (row,) = build_rows(config, {"ner": {"dense": 1e-4}}, {run: only_dev})
    assert row["metric"] == "dev entity_f1" and row["mean"] == pytest.approx(51)
