"""The shipped task, study and recipe files load; overrides and wrong fields as in pretraining."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bert.config import PretrainConfig
from bert.tasks.finetune_config import FinetuneConfig
from distributed.errors import BadInput
from launch.config_loading import load_config
from launch.study.plan import StudyConfig, final_runs, load_finetune

CONFIGS = Path(__file__).parents[4] / "configs"
TASKS = sorted((CONFIGS / "tasks").glob("*.yaml"))
NAMED = {
    "sst2", "mrpc", "qqp", "stsb", "rte", "qnli", "mnli", "cola", "squad", "conll2003", "imdb",
    "ncbi-disease", "bc5cdr-chemical", "bc5cdr-disease", "bc2gm", "jnlpba", "linnaeus", "ebm-pico",
    "chemprot", "ddi", "gad", "biosses", "hoc", "pubmedqa", "bioasq",
}  # fmt: skip


def load(path: Path, *overrides: str) -> FinetuneConfig:
    return load_config(path, ["model.init_from=models/x", *overrides], root=FinetuneConfig)


def test_every_task_that_is_promised_is_there() -> None:
    assert {path.stem for path in TASKS} >= NAMED


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_file(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem and len(config.seeds) == 3
    assert config.task.main_metric in config.task.metrics
    assert path.read_text().startswith("# "), "where its files come from"


@pytest.mark.parametrize("path", sorted((CONFIGS / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_study_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    study = load_config(path, root=StudyConfig)
    models = list(study.models)
    rates = {task: dict.fromkeys(models, study.learning_rates[0]) for task in study.tasks}
    runs = final_runs(study, models, rates)
    assert len(runs) == len(study.tasks) * len(models)
    for run in runs:
        config = load_finetune(study, run)
        assert config.name == run.name and config.seeds == study.seeds
        assert config.train.learning_rate == study.learning_rates[0]
        is_taught = study.models[run.model].distillation is not None
        assert is_taught == (config.distillation is not None)


@pytest.mark.parametrize(
    "path",
    [*sorted((CONFIGS / "bert_base").glob("*.yaml")), CONFIGS / "miniature_general.yaml"],
    ids=lambda path: path.stem,
)
def test_a_recipe(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, PretrainConfig)
    if path.parent.name == "bert_base":
        assert config.model.hidden_size == 768 and config.train.global_batch_rows == 256
        sparse = "sparse" in path.stem
        assert (config.sparsity is not None) == sparse
        if "general_sparse" in path.stem:
            assert config.sparsity is not None
            assert config.sparsity.final_sparsity == float(f"0.{path.stem[-2:]}")


def test_paths_become_absolute_and_hub_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(CONFIGS / "tasks" / "sst2.yaml", "task.test=hub:nyu-mll/glue:sst2:validation")
    resolved = config.resolved()
    assert resolved.task.test is not None
    assert resolved.task.test.paths == ["hub:nyu-mll/glue:sst2:validation"]
    assert Path(resolved.task.train.paths[0]).is_absolute()
    assert resolved.model.init_from.is_absolute()


def test_a_run_a_seed() -> None:
    config = load(CONFIGS / "tasks" / "sst2.yaml", "seeds=[4,7]", "name=mine")
    runs = [config.for_seed(seed) for seed in config.seeds]
    assert [str(r.launch.runs_dir / r.name) for r in runs] == [
        "runs/mine/seed-4",
        "runs/mine/seed-7",
    ]
    assert [r.seed for r in runs] == [4, 7]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seeds=[1,1]"], "seeds names a seed twice"),
        (["seed=3"], "seed on the command line is not a known field: did you mean seeds"),
        (["task.format=squad"], "task.format squad does not hold classification tasks"),
        (["task.metrics=[entity_f1]"], "entity_f1, which is not for classification"),
        (["task.dev=x.tsv"], "set one of task.dev and task.dev_fraction"),
        (["train.global_batch_rows=2", "launch.num_workers=3"], r"train.global_batch_rows \(2\)"),
        (
            ["task.max_seq_len=513"],
            "task.max_seq_len on the command line is 513: .* less than or equal to 512",
        ),
        (["train.attention_dropout=0.1"], "attention_dropout .* must be 0"),
    ],
)
def test_wrong_fields(overrides: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(CONFIGS / "tasks" / "sst2.yaml", *overrides)


def test_the_source_must_be_named() -> None:
    with pytest.raises(
        BadInput, match="model is missing in .*sst2.yaml: add it .*model.init_from="
    ):
        load_config(CONFIGS / "tasks" / "sst2.yaml", root=FinetuneConfig)


def test_a_study_whose_twin_is_not_there(tmp_path: Path) -> None:
    fields: dict[str, Any] = yaml.safe_load((CONFIGS / "studies" / "miniature.yaml").read_text())
    fields["models"]["general-sparse90"]["twin"] = "nobody"
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(fields))
    with pytest.raises(BadInput, match="general-sparse90.twin is nobody, which is no model here"):
        load_config(file, root=StudyConfig)
