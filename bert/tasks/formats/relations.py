"""Readers of relations between two entities: ChemProt and DDI as released, texts with marks.

chemprot   BioCreative VI: *_abstracts.tsv, *_entities.tsv, *_gold_standard.tsv in one folder.
           Every chemical and gene of a sentence is a candidate; pairs without a CPR group that
           is evaluated (3, 4, 5, 6, 9) are the class "false", as in BLURB.
ddi        DDIExtraction 2013: XML with a `pair` for every two drugs of a sentence.
marked     JSON lines whose text has << >> and [[ ]] around the two (SciBERT's ChemProt).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from bert.tasks.config import SplitConfig, TaskConfig
from bert.tasks.formats.entities import Entity, read_marks, show_entities
from bert.tasks.formats.examples import NO_CONTRADICTION, TEXT_COUNTS, Split, TextExample
from bert.tasks.formats.sources import read_lines, read_text
from bert.tasks.formats.text import EMPTY_TEXT, read_record_split
from bert.tasks.offsets import Piece, find_pieces
from distributed.errors import BadInput

NO_RELATION = "false"
ACROSS_SENTENCES = "gold relations between entities of different sentences left out"
UNTYPED = "interacting pairs without a type read as DDI-int"
CONTRADICTED = "pairs that do not interact and have a type left out"
SAME_TYPE = "gold relations of two chemicals or two genes left out"
SEVERAL = "pairs with several evaluated relations, of which the first counts"
MOVED = "entities found elsewhere in the text than their offsets say"
LOST = "entities whose text is not there left out"
LOST_PAIRS = "pairs of an entity whose text is not there left out"
NO_ABSTRACT = "entities of an abstract that the folder does not have left out"
_EVALUATED = {"CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9"}
_GROUPS = {f"CPR:{number}" for number in range(11)}
_TYPES = {"CHEMICAL": "CHEMICAL", "GENE": "GENE", "GENE-Y": "GENE", "GENE-N": "GENE"}
_SENTENCE_END = re.compile(r"(\S*[.!?])\s+(?=[A-Z])")
# What a full stop of which ends no sentence: a capital alone (E. coli) and these.
_ABBREVIATION = re.compile(
    r"\W*(?:[A-Z]|al|approx|[Cc]f|e\.g|i\.[a-z]|p\.o|s\.c|vs|[Ff]igs?|[Rr]efs?|[Nn]os?|Dr|St|spp?)\."
)
_OFFSETS = re.compile(r"\d+-\d+(;\d+-\d+)*")
Relations = dict[tuple[str, str, str], str]  # (PMID, chemical, gene) -> group


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
        texts: dict[str, tuple[str, str]] = {}  # PMID -> place, text
        for place, (pmid, title, abstract) in _rows(folder, "abstracts", 3):
            if pmid in texts:
                raise BadInput(f"{place} has the abstract {pmid} again: remove one of the two")
            texts[pmid] = place, f"{title} {abstract}"
        entities = _read_entities(folder, texts, out)
        relations = _read_relations(folder, entities, out)
        for pmid, (place, text) in texts.items():
            there = {key: e for key, e in entities[pmid].items() if e is not None}
            examples += _chemprot_pairs(text, there, relations, pmid, task, place)
        if relations:
            out.reports[ACROSS_SENTENCES] += len(relations)
    out.examples = examples
    return out


def _read_entities(
    folder: Path, texts: Mapping[str, tuple[str, str]], out: Split
) -> dict[str, dict[str, Entity | None]]:
    """The entities of each abstract by their keys; None for one whose text is not there."""
    entities: dict[str, dict[str, Entity | None]] = defaultdict(dict)
    for place, (pmid, key, kind, start, end, name) in _rows(folder, "entities", 6):
        if kind not in _TYPES:
            raise BadInput(
                f"{place} has an entity of type {kind!r}, not one of {', '.join(_TYPES)}"
            )
        if key in entities[pmid]:
            raise BadInput(f"{place} has the entity {key} of {pmid} again: remove one of the two")
        pieces = [(_number(start, place), _number(end, place))]
        entities[pmid][key] = None
        if pmid in texts:
            entities[pmid][key] = _locate(texts[pmid][1], name, pieces, _TYPES[kind], out)
        else:
            out.reports[NO_ABSTRACT] += 1
    return entities


def _read_relations(
    folder: Path, entities: Mapping[str, Mapping[str, Entity | None]], out: Split
) -> Relations:
    """The evaluated group of each pair of a chemical and a gene that are there."""
    relations: Relations = {}
    for place, (pmid, group, *arguments) in _rows(folder, "gold_standard", 4):
        keys = [key.removeprefix(f"Arg{i}:") for i, key in enumerate(arguments, start=1)]
        found = entities.get(pmid, {})
        if any(key not in found for key in keys):
            raise BadInput(f"{place} names an entity that the entities file does not have")
        if group not in _GROUPS:
            raise BadInput(
                f"{place} has the relation {group!r}, which is not one of CPR:0 to CPR:10"
            )
        if group not in _EVALUATED:
            continue
        types = {e.type: key for key in keys if (e := found[key]) is not None}
        if any(found[key] is None for key in keys):
            out.reports[LOST_PAIRS] += 1
        elif len(types) < 2:
            out.reports[SAME_TYPE] += 1
        else:
            if types["CHEMICAL"] != keys[0]:
                out.newer_rules.add(NO_CONTRADICTION)
            if relations.setdefault((pmid, types["CHEMICAL"], types["GENE"]), group) != group:
                out.reports[SEVERAL] += 1
    return relations


def _locate(
    text: str, name: str | None, pieces: list[Piece], kind: str, out: Split
) -> Entity | None:
    """An entity at its offsets, or where its text is near to them; one in several pieces counts
    from its first character to its last. None, and counted, if its text is not there.
    """
    if name is not None:
        found = find_pieces(text, name, pieces)
    else:
        found = (pieces, True) if all(0 <= a < b <= len(text) for a, b in pieces) else None
    if found is None or not found[1]:
        out.newer_rules.add(TEXT_COUNTS)
        out.reports[LOST if found is None else MOVED] += 1
    if found is None:
        return None
    return Entity(min(a for a, _ in found[0]), max(b for _, b in found[0]), kind)


def _chemprot_pairs(
    text: str,
    entities: dict[str, Entity],
    relations: Relations,
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
                drugs = _read_drugs(sentence, text, place, out)
                for pair in sentence.iter("pair"):
                    if pair.get("e1") not in drugs or pair.get("e2") not in drugs:
                        raise BadInput(f"{place} has a pair of an entity that it does not have")
                    label = _ddi_label(pair, place, out)
                    first, second = drugs[pair.get("e1")], drugs[pair.get("e2")]
                    if label is None:
                        continue
                    if first is None or second is None:
                        out.reports[LOST_PAIRS] += 1
                        continue
                    shown = show_entities(text, first, second, task.entities)
                    label = task.label_map.get(label, label)
                    examples.append(TextExample(shown, None, label, place, group=text))
    out.examples = examples
    return out


def _ddi_label(pair: Any, place: str, out: Split) -> str | None:
    """The class of a pair; None, and counted, if what the pair says contradicts itself."""
    interacts, kind = pair.get("ddi"), pair.get("type")
    if interacts not in ("true", "false"):
        raise BadInput(f"{place} has a pair whose ddi is {interacts!r}, not 'true' or 'false'")
    if interacts == "false":
        if kind:
            out.reports[CONTRADICTED] += 1
            out.newer_rules.add(NO_CONTRADICTION)
            return None
        return NO_RELATION
    if not kind:
        out.reports[UNTYPED] += 1  # the release has one such pair
        return "DDI-int"
    return f"DDI-{kind}"


def _read_drugs(sentence: Any, text: str, place: str, out: Split) -> dict[str, Entity | None]:
    """The entities of a sentence by their ids; None for one whose text is not there."""
    drugs: dict[str, Entity | None] = {}
    for entity in sentence.iter("entity"):
        offsets = entity.get("charOffset") or ""
        if not _OFFSETS.fullmatch(offsets):
            raise BadInput(
                f"{place} has the charOffset {offsets!r}: it must be like 0-8 or 0-3;7-9"
            )
        ends = [piece.split("-") for piece in offsets.split(";")]
        pieces = [(int(start), int(end) + 1) for start, end in ends]  # their ends are inclusive
        key = entity.get("id")
        if not key or key in drugs:
            raise BadInput(
                f"{place} has the entity {key} twice: remove one"
                if key
                else f"{place} has an entity without an id"
            )
        drugs[key] = _locate(text, entity.get("text"), pieces, "DRUG", out)
    return drugs


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
