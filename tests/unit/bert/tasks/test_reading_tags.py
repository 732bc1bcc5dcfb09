"""Words with tags: the schemes that corpora use, and what is read of them."""

import pytest

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
