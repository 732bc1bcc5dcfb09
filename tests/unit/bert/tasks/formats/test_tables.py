"""Tab-separated tables: whose quotes enclose cells, and whose are text.

Quoted tables are written by csv.writer and by pandas, and must come back cell for cell.
"""

import csv
import io
import random
from pathlib import Path
from typing import Any

import pandas
import pytest

from bert.tasks.formats.examples import Split
from bert.tasks.formats.tables import KEPT_QUOTES, read_cells
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import Write, load, texts

ROWS = [
    ["sentence", "label"],
    ['He said "no".', 1],
    ["two\tparts", 0],
    ["two\nlines", 1],
    ['"all of it"', 0],
    ["plain, and simple", 1],
]


def written(rows: list[list[Any]], **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter="\t", **{"lineterminator": "\n", **options}).writerows(rows)
    return out.getvalue()


def cells(text: str, *, header: bool = True, quotes: bool | None = None) -> list[list[str]]:
    out = Split([])
    return [row for _, row in read_cells(text, "t", header=header, quotes=quotes, out=out)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_csv_writes_comes_back(write: Write, quoting: Any, end: str) -> None:
    file = write("t.tsv", written(ROWS, quoting=quoting, lineterminator=end))
    data = load(str(file))
    assert [(t, label) for t, _, label in texts(data)] == [(t, str(x)) for t, x in ROWS[1:]]
    assert not data.train.reports
    # The line on which a record begins: the third one has a line break inside.
    assert [e.place.rpartition(" ")[2] for e in data.train.examples] == ["2", "3", "4", "6", "7"]


def test_what_pandas_writes_comes_back(write: Write, tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS[1:], columns=ROWS[0])
    for options in ({}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC}):
        frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False, **options)
        read = texts(load(str(tmp_path / "t.tsv")))
        assert [(t, x) for t, _, x in read] == [(t, str(x)) for t, x in ROWS[1:]], options
    frame.to_csv(tmp_path / "t.tsv", sep="\t")  # with its index, whose column has no name
    assert len(texts(load(str(tmp_path / "t.tsv")))) == 5


def test_any_cells_that_csv_writes_come_back() -> None:
    draw = random.Random(3)
    for _ in range(300):
        rows = [
            [
                "".join(draw.choices('ab "\t\n,', k=draw.randrange(1, 6))),
                "x",
                str(draw.randrange(3)),
            ]
            for _ in range(draw.randrange(1, 6))
        ]
        rows = [["one", "two", "three"], *rows]
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        text = written(rows, quoting=quoting)
        assert cells(text, quotes=True) == rows
        try:
            found = cells(text)
        except BadInput:
            continue
        # Read line by line only if that is a table, too.
        lines = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
        assert found == rows or ({3} == {len(row) for row in lines} and found == lines), text


GLUE = {
    "a quote inside": 'He said "no" to it.\t1\n"no" he said\t0\n',
    "one that is not closed": 'He said "no\t1\nand "so on\t0\n',
    "cells that are quotations": '"All of it."\t1\nplain\t0\n"No, not I."\t1\n',
    "quotes that pair up over lines": '"All of it\t1\nor none"\t0\n',
    "inches": 'a 3" nail\t1\na 4" one\t0\n',
    "an empty quotation": '""\t1\nplain\t0\n',
}


@pytest.mark.parametrize("name", GLUE)
def test_quotes_that_are_text_stay(write: Write, name: str) -> None:
    rows = [line.split("\t") for line in GLUE[name].splitlines()]
    data = load(str(write("t.tsv", f"sentence\tlabel\n{GLUE[name]}")))
    assert [[t, label] for t, _, label in texts(data)] == rows
    assert not data.train.reports


def test_a_mixture_is_read_as_it_is_and_counted(write: Write) -> None:
    text = 'sentence\tlabel\nan "odd" one\t0\n"he said ""no"""\t1\n'
    data = load(str(write("t.tsv", text)))
    assert [t for t, _, _ in texts(data)] == ['an "odd" one', '"he said ""no"""']
    assert data.train.reports == {KEPT_QUOTES: 1}


def test_what_cannot_be_known_is_for_the_task_to_say(write: Write) -> None:
    file = str(write("t.tsv", 'sentence\tlabel\n"he said ""no"""\t1\n"all of it"\t0\nx\t1\n'))
    with pytest.raises(BadInput, match="t.tsv may be quoted or not: .* set task.quotes to"):
        load(file)
    enclosed = load(file, quotes=True)
    assert [t for t, _, _ in texts(enclosed)] == ['he said "no"', "all of it", "x"]
    text = load(file, quotes=False)
    assert [t for t, _, _ in texts(text)] == ['"he said ""no"""', '"all of it"', "x"]


def test_a_table_that_is_not_quoted_as_the_task_says(write: Write) -> None:
    file = str(write("t.tsv", 'sentence\tlabel\nfine\t0\nan "odd" one\t1\n'))
    with pytest.raises(BadInput, match=r"t.tsv line 3 has a quote inside a cell that is not"):
        load(file, quotes=True)
    with pytest.raises(BadInput, match=r"t.csv has commas, .*unset task.quotes"):
        load(str(write("t.csv", "sentence,label\na,1\nb,0\n")), quotes=False)


def test_a_quoted_text_with_a_tab_in_a_table_without_quotes(write: Write) -> None:
    file = write("b.tsv", 'sentence\tlabel\nan "odd" one\t0\n"two\tparts"\t1\n')
    assert texts(load(str(file))) == [('an "odd" one', None, "0"), ("two\tparts", None, "1")]


def test_blank_lines_are_no_rows() -> None:
    assert cells('\n"a"\t"b"\n\n"c""d"\t"e"\n\n') == [["a", "b"], ['c"d', "e"]]
    assert cells("\na\tb\n\r\nc\td") == [["a", "b"], ["c", "d"]]
