"""Readers of relations between two entities: ChemProt and DDI as released, texts with marks.

chemprot   BioCreative VI: *_abstracts.tsv, *_entities.tsv, *_gold_standard.tsv in one folder.
           Every chemical and gene of a sentence is a candidate; pairs without a CPR group that
           is evaluated (3, 4, 5, 6, 9) are the class "false", as in BLURB.
ddi        DDIExtraction 2013: XML with a `pair` for every two drugs of a sentence.
marked     JSON lines whose text has << >> and [[ ]] around the two (SciBERT's ChemProt).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from bert.tasks.configuration import SplitConfig, TaskConfig
from bert.tasks.entities import Entity, read_marks, show_entities
from bert.tasks.examples import Split, TextExample
from bert.tasks.reading_text import EMPTY_TEXT, read_record_split
from bert.tasks.sources import read_lines, read_text
from distributed.errors import BadInput

NO_RELATION = "false"
ACROSS_SENTENCES = "gold relations between entities of different sentences left out"
UNTYPED = "interacting pairs without a type read as DDI-int"
SEVERAL = "pairs with several evaluated relations, of which the first counts"
_EVALUATED = {"CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9"}
_SENTENCE_END = re.compile(r"(\S*[.!?])\s+(?=[A-Z])")
# What a full stop of which ends no sentence: a capital alone (E. coli) and these.
_ABBREVIATION = re.compile(
    r"\W*(?:[A-Z]|al|approx|[Cc]f|e\.g|i\.[a-z]|p\.o|s\.c|vs|[Ff]igs?|[Rr]efs?|[Nn]os?|Dr|St|spp?)\."
)
_OFFSETS = re.compile(r"\d+-\d+(;\d+-\d+)*")


def read_marked_split(task: TaskConfig, split: SplitConfig) -> Split:
    """JSON lines or tables with the two entities marked in the text."""
    out = read_record_split(task, split)
    shown = []
    for example in out.examples:
        assert isinstance(example, TextExample)
        plain, first, second = read_marks(example.text, task.entity_types, example.place)
        text = show_entities(plain, first, second, task.entities)
        shown.append(TextExample(text, None, example.label, example.place, " ".join(plain.split())))
    out.examples = shown
    return out


def read_chemprot_split(task: TaskConfig, split: SplitConfig) -> Split:
    """Folders as BioCreative VI distributes them."""
    out = Split([])
    examples: list[TextExample] = []
    for folder in map(Path, split.paths):
        entities: dict[str, dict[str, Entity]] = defaultdict(dict)
        for place, (pmid, key, kind, start, end, *_) in _rows(folder, "entities", 6):
            name = "CHEMICAL" if kind == "CHEMICAL" else "GENE"
            entities[pmid][key] = Entity(_number(start, place), _number(end, place), name)
        relations: dict[tuple[str, str, str], str] = {}
        for place, (pmid, group, first, second) in _rows(folder, "gold_standard", 4):
            pair = pmid, first.removeprefix("Arg1:"), second.removeprefix("Arg2:")
            if any(key not in entities[pmid] for key in pair[1:]):
                raise BadInput(f"{place} names an entity that the entities file does not have")
            if group not in _EVALUATED:
                continue
            if pair in relations:
                if relations[pair] != group:
                    out.reports[SEVERAL] += 1
                continue
            relations[pair] = group
        for place, (pmid, title, abstract) in _rows(folder, "abstracts", 3):
            examples += _chemprot_pairs(
                f"{title} {abstract}", entities[pmid], relations, pmid, task, place
            )
        if relations:
            out.reports[ACROSS_SENTENCES] += len(relations)
    out.examples = examples
    return out


def _chemprot_pairs(
    text: str,
    entities: dict[str, Entity],
    relations: dict[tuple[str, str, str], str],
    pmid: str,
    task: TaskConfig,
    place: str,
) -> Iterator[TextExample]:
    """One example for each chemical and gene of a sentence; used relations are taken out."""
    for start, end in _sentences(text, list(entities.values())):
        inside = {k: e for k, e in entities.items() if start <= e.start and e.end <= end}
        for chemical_key, chemical in inside.items():
            for gene_key, gene in inside.items():
                if chemical.type != "CHEMICAL" or gene.type != "GENE":
                    continue
                label = relations.pop((pmid, chemical_key, gene_key), NO_RELATION)
                first, second = (
                    Entity(e.start - start, e.end - start, e.type) for e in (chemical, gene)
                )
                shown = show_entities(text[start:end], first, second, task.entities)
                where = f"{place} ({chemical_key}, {gene_key})"
                label = task.label_map.get(label, label)
                yield TextExample(shown, None, label, where, group=text)


def read_ddi_split(task: TaskConfig, split: SplitConfig) -> Split:
    """XML files, or folders of them, as DDIExtraction 2013 distributes them."""
    out = Split([])
    examples = []
    for path in map(Path, split.paths):
        files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
        if not files:
            raise BadInput(f"{path} has no .xml file")
        for file in files:
            for sentence in _parse_xml(file).iter("sentence"):
                place = f"{file} sentence {sentence.get('id')}"
                text = sentence.get("text") or ""
                if not text.strip():
                    out.reports[EMPTY_TEXT] += 1
                    continue
                drugs = {e.get("id"): _drug(e, place) for e in sentence.iter("entity")}
                for pair in sentence.iter("pair"):
                    if pair.get("e1") not in drugs or pair.get("e2") not in drugs:
                        raise BadInput(f"{place} has a pair of an entity that it does not have")
                    label = _ddi_label(pair, out)
                    first, second = drugs[pair.get("e1")], drugs[pair.get("e2")]
                    shown = show_entities(text, first, second, task.entities)
                    label = task.label_map.get(label, label)
                    examples.append(TextExample(shown, None, label, place, group=text))
    out.examples = examples
    return out


def _ddi_label(pair: Any, out: Split) -> str:
    if pair.get("ddi") == "false":
        return NO_RELATION
    if not pair.get("type"):
        out.reports[UNTYPED] += 1  # the release has one such pair
        return "DDI-int"
    return f"DDI-{pair.get('type')}"


def _drug(entity: Any, place: str) -> Entity:
    """An entity; one in several pieces counts from its first character to its last."""
    offsets = entity.get("charOffset") or ""
    if not _OFFSETS.fullmatch(offsets):
        raise BadInput(f"{place} has the charOffset {offsets!r}: it must be like 0-8 or 0-3;7-9")
    numbers = [int(n) for piece in offsets.split(";") for n in piece.split("-")]
    return Entity(min(numbers), max(numbers) + 1, "DRUG")  # their ends are inclusive


def _parse_xml(file: Path) -> Any:
    try:
        return fromstring(read_text(file))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise BadInput(f"{file} is not XML that can be read ({error})") from None


def _rows(folder: Path, kind: str, columns: int) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line of the folder's one *_KIND*.tsv file."""
    files = sorted(folder.glob(f"*_{kind}*.tsv*"))
    if len(files) != 1:
        raise BadInput(f"{folder} has {len(files)} files *_{kind}*.tsv instead of one")
    for number, line in read_lines(files[0]):
        if not line.strip():
            continue
        cells = line.split("\t")
        place = f"{files[0]} line {number}"
        if len(cells) != columns:
            raise BadInput(f"{place} has {len(cells)} columns instead of {columns}")
        yield place, cells


def _sentences(text: str, entities: list[Entity]) -> list[tuple[int, int]]:
    """Where sentences begin and end: at a mark before a capital, but never inside an entity."""
    found = _SENTENCE_END.finditer(text)
    ends = [m.end(1) for m in found if not _ABBREVIATION.fullmatch(m[1])]
    ends = [end for end in ends if not any(e.start < end < e.end for e in entities)]
    return list(pairwise([0, *ends, len(text)]))


def _number(text: str, place: str) -> int:
    if not text.isdigit():
        raise BadInput(f"{place} has {text!r} where an offset must be")
    return int(text)
