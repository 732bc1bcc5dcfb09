"""Rows: special tokens, targets at first sub-tokens, windows that lose no word and no answer."""

import random
from typing import Any

import numpy as np
import pytest

from bert.tasks.config import TaskConfig
from bert.tasks.encoding import CUT, UNREADABLE, WINDOWED, EncodedSplit, encode_split
from bert.tasks.formats.examples import Example, QuestionExample, TextExample, TokenExample
from bert.vocabulary import Vocabulary


def task_config(kind: str, **fields: Any) -> TaskConfig:
    formats = {"tokens": "tags", "question_answering": "squad"}
    metric = {"tokens": "entity_f1", "question_answering": "answer_f1", "regression": "pearson",
              "multi_label": "micro_f1"}  # fmt: skip
    return TaskConfig.model_validate(
        {
            "kind": kind,
            "format": formats.get(kind, "records"),
            "train": "x",
            "dev": "x",
            "metrics": [metric.get(kind, "accuracy")],
            **fields,
        }
    )


def encode(
    vocabulary: Vocabulary, kind: str, *examples: Example, training: bool = False, **fields: Any
) -> EncodedSplit:
    labels = {"tokens": ("O", "B-X", "I-X"), "classification": ("no", "yes"),
              "multi_label": ("a", "b", "c")}  # fmt: skip
    return encode_split(
        examples,
        task=task_config(kind, **fields),
        labels=labels.get(kind, ()),
        vocabulary=vocabulary,
        training=training,
    )


def pieces(vocabulary: Vocabulary, ids: np.ndarray) -> list[str]:
    return [vocabulary.tokens[i] for i in ids]


def test_a_pair(vocabulary: Vocabulary) -> None:
    example = TextExample("The cats", "sitting?", "yes", "here")
    row = encode(vocabulary, "classification", example).rows[0]
    want = ["[CLS]", "the", "cat", "##s", "[SEP]", "s", "##i", "##t", "##ting", "?", "[SEP]"]
    assert pieces(vocabulary, row.input_ids) == want
    assert row.token_type_ids.tolist() == [0] * 5 + [1] * 6
    assert row.target == 1 and row.loss_terms == 1


def test_targets_of_texts(vocabulary: Vocabulary) -> None:
    row = encode(vocabulary, "regression", TextExample("cat", None, 2.5, "")).rows[0]
    assert row.target == np.float32(2.5) and row.target.shape == ()
    row = encode(vocabulary, "multi_label", TextExample("cat", None, ("c", "a"), "")).rows[0]
    assert row.target.tolist() == [1, 0, 1] and row.loss_terms == 3


@pytest.mark.parametrize(("first", "second"), [(3, 40), (40, 3), (40, 40), (40, None)])
def test_the_longer_text_is_cut(vocabulary: Vocabulary, first: int, second: int | None) -> None:
    pair = None if second is None else " ".join(["mat"] * second)
    example = TextExample(" ".join(["cat"] * first), pair, "no", "")
    split = encode(vocabulary, "classification", example, max_seq_len=23)
    tokens = pieces(vocabulary, split.rows[0].input_ids)
    assert len(tokens) == 23 and split.reports == {CUT: 1}
    if second is None:
        assert tokens.count("cat") == 21
        return
    longest = 10 if first == second else 17
    assert tokens.count("cat") == (3 if first == 3 else longest)
    assert tokens.count("mat") == 20 - tokens.count("cat")


def test_first_sub_tokens_carry_the_tags(vocabulary: Vocabulary) -> None:
    example = TokenExample(("The", "cats", "\u200b", "sitting"), ("O", "B-X", "I-X", "O"), "")
    split = encode(vocabulary, "tokens", example)
    (row,) = split.rows
    want = ["[CLS]", "the", "cat", "##s", "[UNK]", "s", "##i", "##t", "##ting", "[SEP]"]
    assert pieces(vocabulary, row.input_ids) == want
    assert row.target.tolist() == [-100, 0, 1, -100, 2, 0, -100, -100, -100, -100]
    assert row.words.tolist() == [[1, 0], [2, 1], [4, 2], [5, 3]] and row.loss_terms == 4
    assert split.reports == {UNREADABLE: 1}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("length", "stride"), [(12, 4), (16, 1), (20, 50)])
def test_windows_join_to_the_sentence(
    vocabulary: Vocabulary, seed: int, length: int, stride: int
) -> None:
    draw = random.Random(seed)
    words = tuple(draw.choice(["cat", "cats", "sitting", "mat"]) for _ in range(40))
    tags = tuple(draw.choice(["O", "B-X", "I-X"]) for _ in words)
    split = encode(
        vocabulary, "tokens", TokenExample(words, tags, ""), max_seq_len=length,
        stride_tokens=stride,
    )  # fmt: skip
    assert split.reports == {WINDOWED: 1} and len(split.rows) > 2
    found: dict[int, str] = {}
    for row in split.rows:
        assert len(row.input_ids) <= length
        assert row.loss_terms == (row.target != -100).sum() == len(row.words)
        tokens = pieces(vocabulary, row.input_ids)
        for token, word in row.words:
            assert word not in found
            assert words[word].startswith(tokens[token])
            found[int(word)] = ("O", "B-X", "I-X")[row.target[token]]
    assert [found[i] for i in range(40)] == list(tags)


def test_a_word_is_read_where_it_has_most_context(vocabulary: Vocabulary) -> None:
    words = ("cat",) * 14
    split = encode(
        vocabulary, "tokens", TokenExample(words, ("O",) * 14, ""), max_seq_len=12, stride_tokens=5
    )
    # Ten words a window, so words 0-9 and 5-13: the shared 5-9 are divided at their middle.
    assert [row.words[:, 1].tolist() for row in split.rows] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 11, 12, 13],
    ]


CONTEXT = "the cat sat on the mat . " * 8 + "who sat in the mat ? the cats ."


def question(answer: str, start: int) -> QuestionExample:
    return QuestionExample("1", "who sat ?", CONTEXT, (answer,), (start,), "place")


def test_every_window_of_a_context(vocabulary: Vocabulary) -> None:
    start = CONTEXT.index("cats")
    fields = {"max_seq_len": 24, "stride_tokens": 6}
    split = encode(vocabulary, "question_answering", question("the cats", start - 4), **fields)
    seen: set[int] = set()
    answering = 0
    for row in split.rows:
        tokens = pieces(vocabulary, row.input_ids)
        assert len(tokens) <= 24 and tokens[:5] == ["[CLS]", "who", "sat", "?", "[SEP]"]
        places = np.flatnonzero(row.spans[:, 0] >= 0)
        assert places.tolist() == list(range(5, len(tokens) - 1))
        assert row.token_type_ids.tolist() == [0] * 5 + [1] * (len(tokens) - 5)
        for place in places:
            a, b = row.spans[place]
            assert CONTEXT[a:b] == tokens[place].removeprefix("##")
            seen |= set(range(a, b))
        if row.target.any():
            answering += 1
            first, last = row.target
            assert CONTEXT[row.spans[first, 0] : row.spans[last, 1]] == "the cats"
    assert seen == {i for i, c in enumerate(CONTEXT) if c != " "}
    assert answering == 1 < len(split.rows)
    trained = encode(
        vocabulary, "question_answering", question("the cats", start - 4), training=True, **fields
    )
    assert len(trained.rows) == 1 and trained.rows[0].target.any()


def test_the_offset_decides_which_of_equal_answers(vocabulary: Vocabulary) -> None:
    second = CONTEXT.index("cat", CONTEXT.index("cat") + 1)
    split = encode(vocabulary, "question_answering", question("cat", second), max_seq_len=100)
    row = split.rows[0]
    assert row.spans[row.target[0], 0] == second and row.target[0] == row.target[1]
