"""Words with tags: the schemes that corpora use, and what is read of them."""

import random
from collections.abc import Sequence

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import TOKENS, Write, load, tags


def test_two_columns(write: Write) -> None:
    file = write("train.tsv", "APC2\tB-Gene\nhere\tO\n\n\ncolon\tB-Disease\ncancer\tI-Disease\n")
    data = load(str(file), **TOKENS)
    assert tags(data) == [
        (("APC2", "here"), ("B-Gene", "O")),
        (("colon", "cancer"), ("B-Disease", "I-Disease")),
    ]
    # A class that training shows only as B- can be longer elsewhere.
    assert data.labels == ("O", "B-Disease", "B-Gene", "I-Disease", "I-Gene")


def test_conll_2003_in_iob1(write: Write) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nUN NNP I-NP B-ORG\n"
    text += "HQ NN I-NP I-ORG\nhi UH O O\n"
    data = load(str(write("eng.train", text)), **TOKENS, tag_scheme="iob1")
    assert tags(data) == [(("EU", "UN", "HQ", "hi"), ("B-ORG", "B-ORG", "I-ORG", "O"))]
    assert data.train.reports == {"I- tags of IOB1 that begin an entity written as B-": 1}


def test_pico_has_no_begin(write: Write) -> None:
    text = "-DOCSTART- (10037531)\n\nXylitol NN O I-INT\nfor NN O O\ncaries NN O I-OUT\n"
    data = load(str(write("pico", text)), **TOKENS, tag_scheme="io")
    assert tags(data)[0][1] == ("I-INT", "O", "I-OUT") and data.labels == ("O", "I-INT", "I-OUT")
    assert not data.train.reports


def test_jnlpba_types_are_merged(write: Write) -> None:
    file = write("t.tsv", "IL-2\tB-DNA\ngene\tI-DNA\nin\tO\nT\tB-cell_type\n")
    data = load(str(file), **TOKENS, merge_types="Entity")
    assert tags(data)[0][1] == ("B-Entity", "I-Entity", "O", "B-Entity")


def test_unbalanced_tags_are_mended_and_counted(write: Write) -> None:
    file = write("t.tsv", "a\tI-X\nb\tB-X\nc\tI-Y\nd\tI-Y\n")
    data = load(str(file), **TOKENS)
    assert tags(data)[0][1] == ("B-X", "B-X", "B-Y", "I-Y")
    assert data.train.reports == {"I- tags that no B- begins read as B-": 2}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a O\nb\n", "t.txt line 2 has 1 columns, not 2"),
        ("a O\nb NN O\n", "t.txt line 2 has 3 columns, not 2"),
        ("a\tO\nb\tDisease\n", "t.txt line 2 has the tag 'Disease'"),
    ],
)
def test_wrong_tags(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(str(write("t.txt", text)), **TOKENS)


def spans(sentence: Sequence[str]) -> list[tuple[int, int]]:
    """Where entities are, as seqeval (conlleval's reading) finds them."""
    return [(start, end) for _, start, end in get_entities(list(sentence))]


@pytest.mark.parametrize(
    ("scheme", "typed", "want", "changed"),
    [
        # CoNLL-2003 in IOB1: U.S. is a place, Treasury an organisation.
        ("iob1", ("I-LOC", "I-ORG", "O"), ("B-E", "B-E", "O"), 2),
        ("iob1", ("I-LOC", "B-LOC", "I-LOC"), ("B-E", "B-E", "I-E"), 1),
        ("bio", ("B-DNA", "I-protein", "I-protein"), ("B-E", "B-E", "I-E"), 1),
        ("bio", ("B-DNA", "I-DNA", "B-RNA"), ("B-E", "I-E", "B-E"), 0),
        ("bio", ("O", "I-DNA", "I-DNA"), ("O", "B-E", "I-E"), 1),
    ],
)
def test_entities_are_found_before_their_types_are_merged(
    write: Write, scheme: str, typed: tuple[str, ...], want: tuple[str, ...], changed: int
) -> None:
    file = write("t.txt", "".join(f"w{i} {tag}\n" for i, tag in enumerate(typed)))
    data = load(str(file), **TOKENS, tag_scheme=scheme, merge_types="E")
    assert tags(data) == [(("w0", "w1", "w2"), want)]
    assert spans(want) == spans(typed)
    assert data.train.reports.total() == changed


@pytest.mark.parametrize("scheme", ["bio", "iob1"])
@pytest.mark.parametrize("merged", [None, "E"])
def test_entities_are_those_that_seqeval_finds(
    write: Write, scheme: str, merged: str | None
) -> None:
    """On any sequence of tags: their places, and their types as far as they are not merged."""
    draw = random.Random(5)
    typed = [
        draw.choices(["O", "B-X", "I-X", "B-Y", "I-Y", "I-Z"], k=draw.randrange(1, 9))
        for _ in range(400)
    ]
    text = "\n".join("".join(f"w\t{tag}\n" for tag in sentence) for sentence in typed)
    read = tags(load(str(write("t.tsv", text)), **TOKENS, tag_scheme=scheme, merge_types=merged))
    assert len(read) == len(typed)
    for (_, got), sentence in zip(read, typed, strict=True):
        assert spans(got) == spans(sentence)
        assert merged or get_entities(list(got)) == get_entities(sentence)
        assert not any(
            tag.startswith("I") and before[1:] != tag[1:]
            for before, tag in zip(("O", *got), got, strict=False)
        ), "each entity begins with B-"


def test_io_tags_that_hide_an_entity(write: Write) -> None:
    """The scheme cannot say that two entities touch: scores by word are right, by entity wrong."""
    file = str(write("t.txt", "a B-X\nb B-X\nc O\n"))
    words = {**TOKENS, "metrics": ["macro_word_f1"], "tag_scheme": "io"}
    data = load(file, **words)
    assert tags(data)[0][1] == ("I-X", "I-X", "O")
    assert data.train.reports == {"B- tags read as I-, as task.tag_scheme io has it": 2}
    with pytest.raises(BadInput, match=r"t.txt line 1 has two entities side by side, .*io makes"):
        load(file, **TOKENS, tag_scheme="io")
    file = str(write("t.txt", "a I-X\nb I-Y\nc O\n"))
    assert tags(load(file, **TOKENS, tag_scheme="io"))[0][1] == ("I-X", "I-Y", "O")
    with pytest.raises(BadInput, match="two entities side by side"):
        load(file, **TOKENS, tag_scheme="io", merge_types="E")


def test_bare_tags(write: Write) -> None:
    data = load(str(write("t.txt", "a B\nb I\nc I-X\nd I\n")), **TOKENS)
    assert tags(data)[0][1] == ("B", "I", "B-X", "B")
