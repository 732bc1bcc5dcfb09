"""Readers of texts and pairs with a label: tables, JSON lines, hub data sets, folders of files.

`records` covers GLUE's tables, BLURB's GAD, BIOSSES, HoC and preprocessed relations, and every JSON
lines file; `folders` is IMDB (one text a file, in a folder named after its label).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.examples import Split, TextExample
from bert.tasks.formats.fields import as_key, as_score, as_text, find_field, spells_a_list
from bert.tasks.formats.labels import LabelReader, SkippedRecord
from bert.tasks.formats.selection import Selection
from bert.tasks.formats.sources import Record, WrongColumns, read_records, read_text
from distributed.errors import BadInput

EMPTY_TEXT = "records with an empty text skipped"
JOINED = "records joined to the text that they belong to"
SPELLED = "texts that spell a list or an object read as they are"
WRONG_COLUMNS = "records with wrong columns skipped"


def read_record_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Tables, JSON lines and hub data sets, with the fields that task.columns names."""
    out = Split([])
    labels, selection = LabelReader(task, out), Selection(split, out)
    examples, documents = [], []
    for source in split.paths:
        for record in read_records(source, header=task.header, quotes=task.quotes, out=out):
            try:
                if isinstance(record, WrongColumns):
                    raise record
                if not selection.takes(partial(find_field, record), record.place):
                    continue
                example = _parse(record, task, labels)
                document = _document(record, task)
            except WrongColumns:
                if task.bad_records == "error":
                    raise
                out.reports[WRONG_COLUMNS] += 1
            except SkippedRecord as skipped:
                out.reports[str(skipped)] += 1
            else:
                if example.text[0] in "[{" and spells_a_list(example.text):
                    out.reports[SPELLED] += 1
                examples.append(example)
                documents.append(document)
    labels.finish()
    selection.report()
    out.examples = examples
    if task.columns.document is not None:
        out.examples = _join(examples, documents)
        out.reports[JOINED] += len(examples) - len(out.examples)
    return out


def read_folder_split(task: TaskConfig, split: SplitConfig) -> Split:
    """FOLDER/LABEL/*.txt for each of task.labels, the layout of IMDB; other folders are left."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        for label in task.labels or []:
            files = sorted((path / label).glob("*.txt"))
            if not files:
                raise BadInput(f"{path / label} has no .txt file: task.labels names its folder")
            for file in files:
                text = read_text(file).strip()
                if text:
                    name = task.label_map.get(label, label)
                    examples.append(TextExample(text, None, name, str(file)))
                else:
                    out.reports[EMPTY_TEXT] += 1
    out.examples = examples
    return out


def _parse(record: Record, task: TaskConfig, labels: LabelReader) -> TextExample:
    """The example.

    Raises:
        SkippedRecord: it is to be left out.
    """
    columns = task.columns
    text = as_text(find_field(record, columns.text), record, columns.text)
    pair = None
    if columns.text_pair is not None:
        pair = as_text(find_field(record, columns.text_pair), record, columns.text_pair)
    raw = find_field(record, columns.label)
    if not text or pair == "":
        raise SkippedRecord(EMPTY_TEXT)
    label: str | float | tuple[str, ...]
    if task.kind == "regression":
        label = as_score(raw, record)
    elif task.kind == "multi_label":
        label = labels.read_several(raw, record)
    else:
        label = labels.read_one(raw, record)
    return TextExample(text, pair, label, record.place)


def _document(record: Record, task: TaskConfig) -> str:
    """Which text the record is a part of: BLUE numbers an abstract's sentences PMID_s0, PMID_s1."""
    column = task.columns.document
    if column is None:
        return ""
    return as_key(find_field(record, column), record, column).partition("_")[0]


def _join(examples: Sequence[TextExample], documents: Sequence[str]) -> list[TextExample]:
    """One example a document: its texts in the order of the file, with all of their labels."""
    parts: dict[str, list[TextExample]] = {}
    for example, document in zip(examples, documents, strict=True):
        parts.setdefault(document, []).append(example)
    joined = []
    for of_one in parts.values():
        labels = dict.fromkeys(label for e in of_one for label in _labels(e))
        pairs = [e.text_pair for e in of_one if e.text_pair is not None]
        joined.append(
            TextExample(
                " ".join(e.text for e in of_one),
                " ".join(pairs) or None,
                tuple(labels),
                of_one[0].place,
            )
        )
    return joined


def _labels(example: TextExample) -> tuple[str, ...]:
    assert isinstance(example.label, tuple), "multi_label"
    return example.label
