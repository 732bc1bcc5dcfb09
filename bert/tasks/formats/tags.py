"""Reader of words with a tag each, in columns: the form in which NER corpora are published.

    APC2 O                          two columns (tabs or blanks): NCBI-disease, BC5CDR, BC2GM, ...
    EU NNP I-NP B-ORG               CoNLL-2003: the word first, the tag last
    Xylitol NN O I-INT              EBM PICO: tags without B-

A blank line ends a sentence; -DOCSTART- lines separate documents and are no text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.examples import BEFORE_MERGING, Split, TokenExample
from bert.tasks.formats.sources import read_lines
from distributed.errors import BadInput

REPAIRED = "I- tags that no B- begins read as B-"
CONVERTED = "I- tags of IOB1 that begin an entity written as B-"
UNBEGUN = "B- tags read as I-, as task.tag_scheme io has it"
EMPTY_WORD = "lines with a tag and no word skipped"
_TAG = re.compile(r"O|[BI](?:-(\S+))?")


def read_tag_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Sentences of words and BIO tags (IO for scheme io)."""
    out = Split([])
    examples: list[TokenExample] = []
    for path in map(Path, split.paths):
        for place, words, tags in _read_sentences(path, out.reports):
            if task.tag_scheme == "io":
                spelled = _as_io(tags, task, out.reports, place)
            else:
                spelled = _as_bio(tags, task, out)
            examples.append(TokenExample(words, spelled, place))
    out.examples = examples
    return out


def _read_sentences(
    path: Path, reports: Counter[str]
) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Place, words and tags of each sentence; those without a word are no sentences."""
    lines: list[tuple[int, str, str]] = []
    columns = 0
    for number, line in [*read_lines(path), (0, "")]:  # a blank line after the last sentence
        if line.strip() and not line.startswith("-DOCSTART-"):
            cells = line.split("\t") if "\t" in line else line.split(" ")
            columns = columns or len(cells)
            if len(cells) < 2 or len(cells) != columns:
                expected = max(columns, 2)
                raise BadInput(f"{path} line {number} has {len(cells)} columns, not {expected}")
            if not _TAG.fullmatch(cells[-1]):
                raise BadInput(
                    f"{path} line {number} has the tag {cells[-1]!r}, which is not O, B-TYPE or "
                    "I-TYPE"
                )
            if cells[0].strip():
                lines.append((number, cells[0], cells[-1]))
            else:
                reports[EMPTY_WORD] += 1
        elif lines:
            numbers, words, tags = zip(*lines, strict=True)
            yield f"{path} line {numbers[0]}", words, tags
            lines = []


def _as_bio(tags: Sequence[str], task: TaskConfig, out: Split) -> tuple[str, ...]:
    """BIO tags; where an entity begins is decided by the types of the file, before any merging."""
    fixed = []
    before = "O"  # what the word before has in the file: "-TYPE", or O outside of entities
    for tag in tags:
        letter, _, kind = tag.partition("-")
        if letter == "I" and before != f"-{kind}":
            out.reports[CONVERTED if task.tag_scheme == "iob1" else REPAIRED] += 1
            letter = "B"
            if task.merge_types and before != "O":
                out.newer_rules.add(BEFORE_MERGING)
        before = "O" if letter == "O" else f"-{kind}"
        fixed.append(_spell(letter, kind, task))
    return tuple(fixed)


def _as_io(
    tags: Sequence[str], task: TaskConfig, reports: Counter[str], place: str
) -> tuple[str, ...]:
    """IO tags: a word is inside of an entity or not.

    Raises:
        BadInput: entities are scored, and two of one type touch, which IO cannot tell apart.
    """
    fixed: list[str] = []
    before = "O"
    for tag in tags:
        letter, _, kind = tag.partition("-")
        if letter == "B":
            reports[UNBEGUN] += 1
        begins = letter == "B" or (letter == "I" and before[1:] != tag[1:])
        spelled = _spell("O" if letter == "O" else "I", kind, task)
        if begins and fixed and fixed[-1] == spelled and "entity_f1" in task.metrics:
            raise BadInput(
                f"the sentence of {place} has two entities side by side, which task.metrics "
                "entity_f1 counts and task.tag_scheme io makes one: set task.tag_scheme to bio"
            )
        fixed.append(spelled)
        before = tag
    return tuple(fixed)


def _spell(letter: str, kind: str, task: TaskConfig) -> str:
    """A tag, with the one name of all types if the task has one."""
    if letter == "O":
        return "O"
    kind = task.merge_types or kind
    return f"{letter}-{kind}" if kind else letter
