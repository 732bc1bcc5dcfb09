"""Runs that began under earlier rules of reading: they go on, or the rules are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM

from bert.tasks.checks import check_finetuning
from bert.tasks.finetune import Finetuning
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.history import check_unchanged
from bert.tasks.splits import load_task
from distributed.errors import BadInput
from training.folder import RunFolder, run_folder_of
from training.session import begin_run

TABLE = "sentence\tlabel\nabc\t1\ncab\t0\nbca\t1\n"
# A blank behind a label made a class of its own before.
BLANK = TABLE.replace("cab\t0", "cab\t0 ")
NUMBERS = "".join(f'{{"sentence": "abc", "label": {x}}}\n' for x in ("1", "0", "1.0"))
UNLABELLED = "".join(f'{{"sentence": "abc", "label": {x}}}\n' for x in (1, 0, -1))
QUOTED = 'sentence\tlabel\n"say ""abc"""\t1\ncab\t0\n'
PLAIN = "ce5e4476de21dc01b6510e222b1a1940d38ea090e6bf0af17327b1df1967f1b5"
SINCE = {
    "blank": (
        BLANK,
        "5296fd76c9de59eddfb4d3186971323baaf36019ae89d4a327e5a7734f522c78",
        "labels lose the blanks at their ends",
    ),
    "number": (
        NUMBERS,
        "2032e67048ed5cfd3846cc2511086c78c11b9590152bc580783773e3e9b2ec4f",
        "numbers count by value",
    ),
    "unlabelled": (
        UNLABELLED,
        "efc3997c5b751736e239224355eb23bb7df617a0715f5b800c089d9262da11a7",
        "the label -1 means unlabelled",
    ),
    "quoted": (
        QUOTED,
        "8181b23cc851304fbd664eec535fe0364cfa01169e9b3f97871f9683982107b5",
        "cells of a quoted table lose their quotes",
    ),
}  # file, fingerprint of before, what is new


@pytest.fixture
def config(tmp_path: Path, vocab: Path) -> FinetuneConfig:
    """A task of three records and a model in Hugging Face's layout."""
    shape = {
        "vocab_size": len(vocab.read_text().splitlines()),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    }
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text(vocab.read_text())
    file = tmp_path / "t.tsv"
    file.write_text(TABLE)
    fields: dict[str, Any] = {
        "name": "task",
        "model": {"init_from": tmp_path / "model"},
        "task": {
            "kind": "classification",
            **{split: str(file) for split in ("train", "dev", "test")},
            "metrics": ["accuracy"],
            "max_seq_len": 16,
        },
        "launch": {"runs_dir": tmp_path / "runs", "use_gpu": False},
    }
    return FinetuneConfig.model_validate(fields).resolved().for_seed(1)


def begin(
    config: FinetuneConfig,
    *,
    rules: int | None,
    is_finished: bool = False,
    fingerprint: str | None = None,
) -> RunFolder:
    """Begin a run; with `rules` None as a version did that did not record them.

    `fingerprint`: of the examples that another version read.
    """
    begin_run(Finetuning(config), check_finetuning(config))
    folder = run_folder_of(config)
    identity = json.loads(folder.identity_file.read_text())
    assert identity["task"].pop("reading") == 2
    if rules is not None:
        identity["task"]["reading"] = rules
    if fingerprint is not None:
        identity["task"]["fingerprint"] = fingerprint
    folder.identity_file.write_text(json.dumps(identity))
    if is_finished:
        scores = {"dev": {}, "test": {}, "labels": ["0", "1"], "total_steps": 7}
        folder.results_file.write_text(json.dumps(scores))
    return folder


def table_of(config: FinetuneConfig) -> Path:
    return Path(config.task.train.paths[0])


def test_the_rules_are_recorded_and_the_classes_told(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = check_finetuning(config)
    assert capsys.readouterr().out == "", "a check writes nothing"
    assert plan.notes == [
        "train: 3 examples; of each class: 0 (1), 1 (2)",
        "dev: 3 examples; of each class: 0 (1), 1 (2)",
        "test: 3 examples; of each class: 0 (1), 1 (2)",
    ]
    assert plan.labels == ["0", "1"] and plan.identity["task"]["reading"] == 2


def test_the_fingerprint_is_that_of_before(config: FinetuneConfig) -> None:
    """What commit 1394c07 gave for the table, whose examples are the same under all rules."""
    folder = begin(config, rules=None)
    assert json.loads(folder.identity_file.read_text())["task"]["fingerprint"] == PLAIN


@pytest.mark.parametrize("text", [TABLE, BLANK])
def test_a_run_goes_on_if_its_examples_are_the_same(config: FinetuneConfig, text: str) -> None:
    """Here the same examples come of both files; the identity stays as the run began it."""
    folder = begin(config, rules=None)
    before = folder.identity_file.read_bytes()
    table_of(config).write_text(text)
    plan = check_finetuning(config)
    assert not plan.is_complete and plan.identity["task"].get("reading") is None
    begin_run(Finetuning(config), plan)
    assert folder.identity_file.read_bytes() == before
    assert same_as_before(config)


@pytest.mark.parametrize("name", SINCE)
def test_other_examples_are_put_down_to_the_rules(config: FinetuneConfig, name: str) -> None:
    """Each fingerprint is what the version before the rules, commit 1394c07, gave for the file."""
    text, fingerprint, rule = SINCE[name]
    table_of(config).write_text(text)
    folder = begin(config, rules=None, fingerprint=fingerprint)
    for check in (check_finetuning, same_as_before):
        with pytest.raises(BadInput) as error:
            check(config)
        sentence = str(error.value)
        assert sentence.startswith(f"{folder.path} began under earlier rules of reading task files")
        assert f"({rule})" in sentence and "the content of" not in sentence


@pytest.mark.parametrize("rules", [None, 2])
def test_other_files_are_still_told(config: FinetuneConfig, rules: int | None) -> None:
    """No newer rule shaped these examples, so the file has changed."""
    begin(config, rules=rules)
    table_of(config).write_text(TABLE.replace("abc", "aaa"))
    for check in (check_finetuning, same_as_before):
        with pytest.raises(BadInput) as error:
            check(config)
        assert "the content of task.train, task.dev or task.test was" in str(error.value)
        assert "rules" not in str(error.value)


def test_files_that_the_rules_of_today_refuse(config: FinetuneConfig) -> None:
    folder = begin(config, rules=None)
    table_of(config).write_text('{"sentence": {"text": "a"}, "label": 1}\n')
    with pytest.raises(BadInput) as error:
        check_finetuning(config)
    assert "t.tsv line 1 has an object in the column sentence" in str(error.value)
    assert f"({folder.path} began under earlier rules of reading" in str(error.value)
    table_of(config).unlink()
    with pytest.raises(BadInput) as error:
        check_finetuning(config)
    assert str(error.value).endswith("does not exist")


@pytest.mark.parametrize("text", [BLANK, '{"sentence": 5, "label": 1}\n'])
def test_a_finished_run_stays_finished(config: FinetuneConfig, text: str) -> None:
    folder = begin(config, rules=None, is_finished=True, fingerprint=SINCE["blank"][1])
    table_of(config).write_text(text)
    plan = check_finetuning(config)
    assert plan.is_complete and plan.labels == ["0", "1"] and plan.total_steps == 7
    (note,) = plan.notes
    assert note.startswith(f"{folder.path} read its files by earlier rules")
    assert not same_as_before(config)
    # What it has not scored yet must be read.
    scores = {**json.loads(folder.results_file.read_text()), "test": None}
    folder.results_file.write_text(json.dumps(scores))
    with pytest.raises(BadInput, match="began under earlier rules of reading"):
        check_finetuning(config)


@pytest.mark.parametrize("rules", [None, 2])
def test_a_finished_run_tells_other_files(config: FinetuneConfig, rules: int | None) -> None:
    begin(config, rules=rules, is_finished=True)
    assert check_finetuning(config).is_complete and check_finetuning(config).notes == []
    table_of(config).write_text(TABLE.replace("abc", "aaa"))
    with pytest.raises(BadInput, match="the content of task.train"):
        check_finetuning(config)


def same_as_before(config: FinetuneConfig) -> bool:
    """What a study asks of its runs."""
    identity = json.loads(run_folder_of(config).identity_file.read_text())
    model = identity["model"]["init_fingerprint"]
    return check_unchanged(
        config,
        fingerprint_of_model=lambda _: model,
        read_data=load_task,
    )
