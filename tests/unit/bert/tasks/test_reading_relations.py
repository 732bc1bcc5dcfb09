"""ChemProt, DDI and marked texts: entities by offsets, pairs and their classes."""

import json

import pytest

from bert.tasks.examples import TextExample
from bert.tasks.reading_relations import _sentences
from distributed.errors import BadInput
from tests.unit.bert.tasks.reading import RELATION, Write, load, texts


def test_chemprot_as_released(write: Write) -> None:
    title, abstract = "Aspirin blocks COX-1.", "It spares COX-2. Ibuprofen and COX-1 interact."
    text = f"{title} {abstract}"

    def entity(key: str, kind: str, name: str, occurrence: int = 0) -> str:
        start = -1
        for _ in range(occurrence + 1):
            start = text.index(name, start + 1)
        return f"77\t{key}\t{kind}\t{start}\t{start + len(name)}\t{name}\n"

    folder = write("cp/chemprot_training_abstracts.tsv", f"77\t{title}\t{abstract}\n").parent
    write(
        "cp/chemprot_training_entities.tsv",
        entity("T1", "CHEMICAL", "Aspirin")
        + entity("T2", "GENE-Y", "COX-1")
        + entity("T3", "GENE-N", "COX-2")
        + entity("T4", "CHEMICAL", "Ibuprofen")
        + entity("T5", "GENE-Y", "COX-1", 1),
    )
    write(
        "cp/chemprot_training_gold_standard.tsv",
        "77\tCPR:4\tArg1:T1\tArg2:T2\n77\tCPR:9\tArg1:T1\tArg2:T3\n77\tCPR:10\tArg1:T4\tArg2:T5\n",
    )
    data = load(str(folder), **RELATION, format="chemprot")
    assert texts(data) == [
        ("@CHEMICAL$ blocks @GENE$ .", None, "CPR:4"),
        ("@CHEMICAL$ and @GENE$ interact.", None, "false"),
    ]
    assert list(data.train.reports.values()) == [1]  # T1 and T3 are in different sentences
    write("cp/chemprot_training_gold_standard.tsv", "77\tCPR:4\tArg1:T1\tArg2:T9\n")
    with pytest.raises(BadInput, match=r"gold_standard.tsv line 1 names an entity"):
        load(str(folder), **RELATION, format="chemprot")


DDI = """<?xml version="1.0" encoding="UTF-8"?>
<document id="D1"><sentence id="D1.s0" text="Milk of calcium reduces tetracyclines.">
<entity id="D1.s0.e0" charOffset="0-3;8-14" type="drug" text="Milk calcium"/>
<entity id="D1.s0.e1" charOffset="24-36" type="group" text="tetracyclines"/>
<pair id="D1.s0.p0" e1="D1.s0.e0" e2="D1.s0.e1" ddi="true" type="mechanism"/>
<pair id="D1.s0.p1" e1="D1.s0.e1" e2="D1.s0.e0" ddi="false"/></sentence></document>"""


def test_ddi(write: Write) -> None:
    file = write("Train/DrugBank/a.xml", DDI)
    data = load(str(file.parents[1]), **RELATION, format="ddi")
    assert texts(data) == [
        ("@DRUG$ reduces @DRUG$ .", None, "DDI-mechanism"),
        ("@DRUG$ reduces @DRUG$ .", None, "false"),
    ]
    shown = load(str(file), **RELATION, format="ddi", entities="markers")
    assert texts(shown)[0][0] == "<< Milk of calcium >> reduces [[ tetracyclines ]] ."
    write("Train/DrugBank/a.xml", DDI.replace("24-36", "24"))
    with pytest.raises(BadInput, match=r"a.xml sentence D1.s0 has the charOffset '24'"):
        load(str(file), **RELATION, format="ddi")
    bomb = '<!DOCTYPE d [<!ENTITY a "b">]><d>&a;</d>'
    with pytest.raises(BadInput, match=r"a.xml is not XML that can be read"):
        load(str(write("Train/DrugBank/a.xml", bomb)), **RELATION, format="ddi")


def test_marked_texts(write: Write) -> None:
    records = [
        {"text": "<< COX-1 >> is hit by [[ aspirin ]].", "label": "INHIBITOR"},
        {"text": "[[ Zinc ]] feeds << ABC >>", "label": "OTHER"},
    ]
    file = write("c.jsonl", "\n".join(map(json.dumps, records)))
    fields = {**RELATION, "format": "marked", "columns": {"text": "text"}}
    assert [t for t, _, _ in texts(load(str(file), **fields))] == [
        "@GENE$ is hit by @CHEMICAL$ .",
        "@CHEMICAL$ feeds @GENE$",
    ]
    assert [t for t, _, _ in texts(load(str(file), **fields, entities="markers"))] == [
        "<< COX-1 >> is hit by [[ aspirin ]] .",
        "[[ Zinc ]] feeds << ABC >>",
    ]
    write("c.jsonl", json.dumps({"text": "<< a >> and b", "label": "X"}))
    with pytest.raises(BadInput, match=r"c.jsonl line 1 has 0 entities in \[\[ \]\]"):
        load(str(file), **fields)


def test_sentences_end_before_a_capital_but_not_after_an_abbreviation() -> None:
    text = "Given i.v. (5 mg) vs. Zinc in E. Coli, as et al. Say. It fell by 3. In (b) it did not."
    cuts = [text[start:end].strip() for start, end in _sentences(text, [])]
    assert cuts == [
        "Given i.v. (5 mg) vs. Zinc in E. Coli, as et al. Say.",
        "It fell by 3.",
        "In (b) it did not.",
    ]


def test_pairs_of_one_sentence_stay_in_one_split(write: Write) -> None:
    sentence = (
        '<sentence id="s{0}" text="A{0} B{0} C{0}."><entity id="a" charOffset="0-1"/>'
        '<entity id="b" charOffset="3-4"/><entity id="c" charOffset="6-7"/>'
        '<pair e1="a" e2="b" ddi="true" type="int"/><pair e1="a" e2="c" ddi="false"/>'
        '<pair e1="b" e2="c" ddi="true"/></sentence>'
    )
    document = "".join(sentence.format(n) for n in range(10, 40))
    file = write("a.xml", f"<document>{document}</document>")
    data = load(str(file), **RELATION, format="ddi", dev=None, dev_fraction=0.2)
    groups = [{e.group for e in s.examples if isinstance(e, TextExample)}
              for s in (data.train, data.dev)]  # fmt: skip
    assert len(groups[0]) == 24 and len(groups[1]) == 6 and not groups[0] & groups[1]
    assert data.train.reports["interacting pairs without a type read as DDI-int"] == 30
