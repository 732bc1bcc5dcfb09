"""Every kind of task through the whole run on two ranks; its answers are what is scored."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert.tasks.scores import read_results
from tests.multiprocess.runs import Text, prepare_text, run_config, train
from tests.multiprocess.tasks import BAD, GOOD, OTHER, finetune, task_run
from training.folder import RunFolder

Draw = random.Random


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("source")
    text: Text = prepare_text(folder)
    return train(1, run_config(text, folder, "source"))


def sentence(draw: Draw) -> list[str]:
    return draw.choices(OTHER + GOOD + BAD, k=draw.randrange(3, 12))


def regression(draw: Draw) -> dict[str, Any]:
    words = sentence(draw)
    return {"sentence": " ".join(words), "label": float(sum(w in GOOD for w in words))}


def multi_label(draw: Draw) -> dict[str, Any]:
    words = sentence(draw)
    labels = [n for n, of in (("good", GOOD), ("bad", BAD)) if set(words) & set(of)]
    return {"sentence": " ".join(words), "label": labels}


def relation(draw: Draw) -> dict[str, Any]:
    label = draw.choice(["good", "bad", "false"])
    word = draw.choice({"good": GOOD, "bad": BAD, "false": OTHER}[label])
    return {"sentence": f"the << of >> {word} was [[ and ]] the", "label": label}


FIELDS: dict[str, dict[str, Any]] = {
    "regression": {"metrics": ["pearson", "spearman"]},
    "multi_label": {"metrics": ["micro_f1"]},
    "relation": {
        "format": "marked",
        "metrics": ["positive_micro_f1", "accuracy"],
        "negative_labels": ["false"],
    },
}
MAKERS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "regression": regression,
    "multi_label": multi_label,
    "relation": relation,
}


def answers(run: RunFolder) -> list[Any]:
    lines = (run.path / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["predicted"] for line in lines]


@pytest.mark.parametrize("kind", MAKERS)
def test_texts(tmp_path: Path, source: RunFolder, kind: str) -> None:
    made: dict[str, list[dict[str, Any]]] = {}
    for seed, (name, count) in enumerate((("train", 192), ("dev", 9), ("test", 41))):
        draw = Draw(seed)
        made[name] = [MAKERS[kind](draw) for _ in range(count)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(map(json.dumps, made[name])) + "\n")
    task = {"kind": kind, "columns": {"text": "sentence", "label": "label"}, **FIELDS[kind]}
    config = task_run(tmp_path, source.path, task=task, train={"epochs": 8, "learning_rate": 5e-3})
    run = finetune(2, config)
    results = read_results(run)
    assert results is not None
    truth, guess = [one["label"] for one in made["test"]], answers(run)
    assert len(guess) == 41
    if kind == "regression":
        want = np.corrcoef(truth, guess)[0, 1]
        assert results["test"]["pearson"] == pytest.approx(want)
    elif kind == "multi_label":
        hit = sum(len(set(t) & set(g)) for t, g in zip(truth, guess, strict=True))
        want = 2 * hit / sum(len(t) + len(g) for t, g in zip(truth, guess, strict=True))
        assert results["test"]["micro_f1"] == pytest.approx(want)
    else:
        pairs = [(t, g) for t, g in zip(truth, guess, strict=True)]
        hit = sum(t == g != "false" for t, g in pairs)
        said = sum(t != "false" for t, _ in pairs) + sum(g != "false" for _, g in pairs)
        want = 2 * hit / said
        assert results["test"]["positive_micro_f1"] == pytest.approx(want)
    assert want > 0.3, "the words tell"


def test_questions(tmp_path: Path, source: RunFolder) -> None:
    """The answer is the one good word of its context; long contexts are read in windows."""

    def paragraph(draw: Draw, number: int) -> dict[str, Any]:
        words = draw.choices(OTHER, k=draw.randrange(5, 40))
        place = draw.randrange(len(words))
        words[place] = draw.choice(GOOD)
        start = len(" ".join([*words[:place], ""]))
        answer = {"text": words[place], "answer_start": start}
        question = {"id": str(number), "question": "new", "answers": [answer]}
        return {"context": " ".join(words), "qas": [question]}

    made = {}
    for seed, (name, count) in enumerate((("train", 120), ("dev", 9), ("test", 31))):
        draw = Draw(seed)
        made[name] = [paragraph(draw, i) for i in range(count)]
        data = {"data": [{"title": "t", "paragraphs": made[name]}], "version": "1.1"}
        (tmp_path / f"{name}.tsv").write_text(json.dumps(data))
    task = {"kind": "question_answering", "format": "squad", "max_seq_len": 24,
            "metrics": ["answer_f1", "exact_match"], "stride_tokens": 6,
            "max_answer_tokens": 3}  # fmt: skip
    config = task_run(tmp_path, source.path, task=task, train={"epochs": 8, "learning_rate": 3e-3})
    run = finetune(2, config)
    results = read_results(run)
    assert results is not None
    guess = answers(run)
    exact = 0
    for one, text in zip(made["test"], guess, strict=True):
        assert text in one["context"] and 1 <= len(text.split()) <= 3
        # "the" and the like vanish when answers are normalised.
        exact += (
            text.removeprefix("the ").removesuffix(" the") == one["qas"][0]["answers"][0]["text"]
        )
    assert results["test"]["exact_match"] == pytest.approx(exact / 31)
    assert exact / 31 > 0.5, "only one word of a context is good"
