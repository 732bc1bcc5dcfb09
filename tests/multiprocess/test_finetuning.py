"""Fine-tuning runs: masks that stay, heads that are dense, resumes, dev that chooses, test once."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert.folders.keep_mask import load_keep_masks
from bert.tasks.checks import check_finetuning
from bert.tasks.scores import read_results
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, list_steps, step_folder
from distributed.errors import BadInput
from launch.models.export import export_checkpoint
from tests.multiprocess import tasks
from tests.multiprocess.runs import (
    Text,
    column,
    contents,
    differences,
    last_checkpoint,
    prepare_text,
    run_config,
    train,
)
from tests.multiprocess.tasks import finetune, task_run
from training.folder import RunFolder

STEPS = 15  # 30 rows, 6 a step, 3 epochs


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return prepare_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def source(text: Text, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(2, run_config(text, tmp_path_factory.mktemp("source"), "source"))


@pytest.fixture(scope="module")
def exported(source: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(source.path, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate((("train", 30), ("dev", 11), ("test", 13))):
        tasks.write_sentences(tmp_path / f"{name}.tsv", count, seed)
    return tmp_path


def results(run: RunFolder) -> dict[str, Any]:
    found = read_results(run)
    assert found is not None
    return found


def test_masks_stay_and_the_head_is_dense(folder: Path, source: RunFolder) -> None:
    theirs = contents(last_checkpoint(source))
    run = finetune(2, task_run(folder, source.path))
    ours = contents(last_checkpoint(run, STEPS))
    assert differences({MASK: ours[MASK]}, {MASK: theirs[MASK]}) == []
    for name, keep in ours[MASK].items():
        assert not ours[MASTER][name][~keep].view(torch.int32).any()
        assert (ours[MASTER][name] != theirs[MASTER][name])[keep].any()
    for name in ("classifier.weight", "pooler.dense.weight"):
        assert (ours[MASTER][name] != 0).all() and name not in ours[MASK]
    assert "cls.predictions.bias" not in ours[MASTER]
    digest = last_checkpoint(source).state["sparsity"]["digest"]
    assert set(column(run, "sparsity/digest").values()) == {digest}
    assert results(run)["sparsity"]["digest"] == digest
    kept = sum(int(keep.sum()) for keep in theirs[MASK].values())
    assert results(run)["sparsity"]["parameters_kept_prunable"] == kept


def test_a_live_zero_trains(folder: Path, exported: Path, source: RunFolder) -> None:
    """With the mask file a live weight that is 0 is trained; without it, it is pruned."""
    parameter = "encoder.layer.1.intermediate.dense.weight"
    at = int(contents(last_checkpoint(source))[MASK][parameter].nonzero()[0])
    got = {}
    for name in ("with", "without"):
        model = folder / name
        shutil.copytree(exported, model)
        weights = load_file(model / "model.safetensors")
        weights[f"bert.{parameter}"].view(-1)[at] = 0.0
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        if name == "without":
            (model / "keep_mask.safetensors").unlink()
        run = finetune(1, task_run(folder, model, name=name, train={"epochs": 1}))
        got[name] = contents(last_checkpoint(run, 5))[MASTER][parameter][at]
    assert got["with"] != 0 and got["without"] == 0


@pytest.mark.parametrize(("world_size", "stage"), [(2, 1), (3, 2), (2, 3)])
def test_other_ranks_and_stages_train_alike(
    folder: Path, source: RunFolder, world_size: int, stage: int
) -> None:
    """6 rows on 3 ranks; of 11 dev rows the ranks have different numbers."""
    changes: dict[str, Any] = {"train": {"epochs": 2, "hidden_dropout": 0.0}}
    alone = finetune(1, task_run(folder, source.path, name="1", **changes, zero={"stage": 0}))
    many = finetune(
        world_size, task_run(folder, source.path, name="n", **changes, zero={"stage": stage})
    )
    for figure in ("train/loss", "dev/loss", "train/grad_norm"):
        assert column(many, figure) == pytest.approx(column(alone, figure), rel=2e-3), figure
    assert results(many)["test"]["loss"] == pytest.approx(results(alone)["test"]["loss"], rel=2e-3)


def test_a_stopped_run_continues_to_the_same_bits(folder: Path, source: RunFolder) -> None:
    whole = finetune(2, task_run(folder, source.path, name="whole"))
    parts = task_run(folder, source.path, name="parts")
    stopped = finetune(2, parts, stop_after=7)
    assert not stopped.results_file.exists() and list_steps(stopped.checkpoints) == [8]
    finetune(2, parts)
    got, want = last_checkpoint(stopped, STEPS), last_checkpoint(whole, STEPS)
    assert differences(contents(got), contents(want)) == []
    assert results(stopped) == results(whole)
    assert column(stopped, "dev/loss") == column(whole, "dev/loss")


def test_a_run_that_recorded_no_rules_of_reading_continues(folder: Path, source: RunFolder) -> None:
    """As earlier versions began it: its examples are the same, so it ends with the same bits."""
    whole = finetune(1, task_run(folder, source.path, name="whole"))
    parts = task_run(folder, source.path, name="parts")
    stopped = finetune(1, parts, stop_after=7)
    identity = json.loads(stopped.identity_file.read_text())
    del identity["task"]["reading"]
    stopped.identity_file.write_text(json.dumps(identity))
    finetune(1, parts)
    got, want = last_checkpoint(stopped, STEPS), last_checkpoint(whole, STEPS)
    assert differences(contents(got), contents(want)) == []
    assert results(stopped) == results(whole)
    lines = (folder / "train.tsv").read_text().splitlines()[1:]
    assert results(whole)["classes"]["train"] == Counter(line[-1] for line in lines)


def test_the_best_is_kept_though_its_writer_died_before_it_could(
    folder: Path, source: RunFolder
) -> None:
    """At a rate that moves nothing the first evaluation stays the best."""
    config = task_run(folder, source.path, train={"learning_rate": 1e-30})
    run = finetune(2, config, stop_after=4)
    assert list_steps(run.best) == list_steps(run.checkpoints) == [5]
    shutil.rmtree(run.best)
    finetune(2, config)
    assert results(run)["best_step"] == 5 and list_steps(run.best) == [5]


def test_it_learns_and_dev_chooses(folder: Path, source: RunFolder) -> None:
    tasks.write_sentences(folder / "train.tsv", 160, 9)
    run = finetune(2, task_run(folder, source.path, train={"epochs": 6}))
    scores = column(run, "dev/accuracy")
    best = max(scores, key=lambda step: (scores[step], -step))
    found = results(run)
    assert found["best_step"] == best and found["dev"]["accuracy"] == scores[best]
    assert list_steps(run.best) == [best] and len(scores) == 6
    assert found["test"]["accuracy"] > 0.8, "a word of each sentence gives its label away"
    lines = (run.path / "predictions.jsonl").read_text().splitlines()
    labels = [line.split("\t")[1] for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    predicted = [json.loads(line)["predicted"] for line in lines]
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert right / len(labels) == pytest.approx(found["test"]["accuracy"])


def test_patience_ends_a_run_that_gets_no_better(folder: Path, source: RunFolder) -> None:
    """At a rate that moves nothing the first evaluation stays the best."""
    train_fields = {"learning_rate": 1e-30, "epochs": 9, "patience": 2}
    config = task_run(folder, source.path, train=train_fields)
    run = finetune(2, config)
    assert list(column(run, "dev/accuracy")) == [5, 10, 15]
    assert results(run)["best_step"] == 5 and results(run)["total_steps"] == 45
    assert not check_is_open(config)


def test_the_test_split_is_scored_when_asked_and_once(folder: Path, source: RunFolder) -> None:
    later = task_run(folder, source.path, score_test=False, train={"epochs": 1})
    run = finetune(1, later)
    assert results(run)["test"] is None and not check_is_open(later)
    before = contents(Checkpoint(step_folder(run.best, list_steps(run.best)[0])))
    now = task_run(folder, source.path, train={"epochs": 1})
    assert check_is_open(now)
    finetune(1, now)
    assert results(run)["test"]["loss"] > 0 and not check_is_open(now)
    after = contents(Checkpoint(step_folder(run.best, list_steps(run.best)[0])))
    assert differences(before, after) == []


def check_is_open(config: Any) -> bool:
    return not check_finetuning(config.for_seed(5)).is_complete


def test_words_in_windows_from_a_dense_folder(
    text: Text, tmp_path: Path, source: RunFolder, exported: Path
) -> None:
    """A dense model trains without masks; sentences longer than the rows are read in windows."""
    dense = train(1, run_config(text, tmp_path, "dense", sparsity=None, train={"total_steps": 2}))
    export_checkpoint(dense.path, tmp_path / "model")
    for seed, (name, count) in enumerate((("train", 40), ("dev", 10), ("test", 12))):
        tasks.write_tags(tmp_path / f"{name}.tsv", count, seed)
    task = {
        "kind": "tokens", "format": "tags", "metrics": ["entity_f1"], "max_seq_len": 16,
        "stride_tokens": 4,
    }  # fmt: skip
    run = finetune(2, task_run(tmp_path, tmp_path / "model", task=task, train={"epochs": 4}))
    found = results(run)
    assert found["test"]["entity_f1"] > 0.9, "the word alone tells its tag"
    assert found["sparsity"]["over_prunable"] == 0 and found["sparsity"]["digest"] is None
    assert "sentences longer than task.max_seq_len read in windows" in found["reports"]["test"]
    assert MASK not in last_checkpoint(run, found["total_steps"]).kinds


def test_the_exported_model_answers_in_transformers(folder: Path, source: RunFolder) -> None:
    """AutoModelForSequenceClassification gives the label that predictions.jsonl has."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tasks.write_sentences(folder / "train.tsv", 60, 9)
    run = finetune(1, task_run(folder, source.path, train={"epochs": 3}))
    export_checkpoint(run.path, folder / "exported")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "exported").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "exported")
    lines = (run.path / "predictions.jsonl").read_text().splitlines()
    texts = [line.split("\t")[0] for line in (folder / "test.tsv").read_text().splitlines()[1:]]
    for text, line in zip(texts, lines, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert model.config.id2label[int(logits.argmax())] == json.loads(line)["predicted"]
    keep, digest = load_keep_masks(folder / "exported" / "keep_mask.safetensors")
    assert digest == results(run)["sparsity"]["digest"] and len(keep) == 12
    again = finetune(1, task_run(folder, folder / "exported", name="on", train={"epochs": 1}))
    assert results(again)["sparsity"]["digest"] == digest


@pytest.mark.parametrize("stage", [0, 3])
def test_a_teacher_is_learned_from(folder: Path, source: RunFolder, stage: int) -> None:
    """From the teacher alone, on labels turned around: the student answers as the teacher does."""
    tasks.write_sentences(folder / "train.tsv", 160, 9)
    taught = finetune(1, task_run(folder, source.path, name="teacher", train={"epochs": 6}))
    file = folder / "train.tsv"
    header, *lines = file.read_text().splitlines()
    turned = [f"{line[:-1]}{1 - int(line[-1])}" for line in lines]
    file.write_text("\n".join([header, *turned]) + "\n")
    student = finetune(
        2,
        task_run(
            folder,
            source.path,
            name="student",
            train={"epochs": 6},
            zero={"stage": stage},
            distillation={"teacher": taught.path, "hardness": 1.0, "temperature": 2.0},
        ),
    )
    assert results(taught)["test"]["accuracy"] > 0.8
    assert results(student)["test"]["accuracy"] > 0.8
    prunable = last_checkpoint(source).state["sparsity"]["pruned"]
    newest = Checkpoint(student.best / step_folder(student.best, list_steps(student.best)[0]).name)
    assert newest.state["sparsity"]["pruned"] == prunable, "the teacher is not counted"


def test_a_teacher_of_something_else_is_refused(folder: Path, source: RunFolder) -> None:
    with pytest.raises(BadInput, match=r"distillation.teacher: .* has no pooler.dense.weight of"):
        check_is_open(task_run(folder, source.path, distillation={"teacher": source.path}))


# What is refused.


def test_another_vocabulary_is_refused(folder: Path, source: RunFolder, exported: Path) -> None:
    other = folder / "other-vocab.txt"
    words = (exported / "vocab.txt").read_text().splitlines()
    other.write_text("\n".join([*words[:-1], "zebra"]) + "\n")
    model = {"init_from": source.path, "vocab": other}
    with pytest.raises(BadInput, match="was trained with another vocabulary than .*other-vocab"):
        check_is_open(task_run(folder, source.path, model=model))
    shutil.copytree(exported, folder / "model")
    (folder / "model" / "vocab.txt").write_text("\n".join(words[:-3]) + "\n")
    with pytest.raises(BadInput, match=r"has nothing as word \d+, and .*tokenizer.json has"):
        check_is_open(task_run(folder, folder / "model"))
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "vocab.txt").write_text("\n".join([*words, "zebra"]) + "\n")
    with pytest.raises(BadInput, match=r"rows of word embeddings, and .*vocab.txt has \d+ words"):
        check_is_open(task_run(folder, folder / "model"))


def test_a_mask_that_does_not_match_is_refused(folder: Path, exported: Path) -> None:
    model = folder / "model"
    shutil.copytree(exported, model)
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"].fill_(0.5)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BadInput, match=r"output.dense.weight is not 0 everywhere where .*keep_mask"
    ):
        check_is_open(task_run(folder, model))


def test_another_task_in_the_same_folder_is_refused(folder: Path, source: RunFolder) -> None:
    finetune(1, task_run(folder, source.path, train={"epochs": 1}))
    changed = task_run(folder, source.path, train={"epochs": 1, "learning_rate": 1e-3})
    with pytest.raises(BadInput, match=r"train.learning_rate was 0.005 and is now 0.001"):
        check_is_open(changed)
    tasks.write_sentences(folder / "train.tsv", 30, 99)
    with pytest.raises(BadInput, match="the content of task.train, task.dev or task.test was"):
        check_is_open(task_run(folder, source.path, train={"epochs": 1}))


def test_texts_longer_than_the_model_are_refused(folder: Path, source: RunFolder) -> None:
    with pytest.raises(BadInput, match=r"task.max_seq_len \(65\) is above the 64 positions"):
        check_is_open(task_run(folder, source.path, task={"max_seq_len": 65}))
