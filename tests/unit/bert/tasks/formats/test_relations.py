"""ChemProt, DDI and marked texts: entities by offsets, pairs and their classes."""

import json

import pytest

from bert.tasks.formats.examples import TextExample
from bert.tasks.formats.relations import _sentences
from bert.tasks.splits import TaskData
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


def ddi(text: str, offsets: str, name: str, pair: str = 'ddi="false"') -> str:
    """A sentence of aspirin, which is first, and one drug."""
    return (
        f'<document><sentence id="s" text="{text}"><entity id="a" charOffset="0-6" text="aspirin"/>'
        f'<entity id="b" charOffset="{offsets}" text="{name}"/><pair e1="a" e2="b" {pair}/>'
        f'<pair e1="b" e2="a" ddi="true" type="int"/></sentence></document>'
    )


@pytest.mark.parametrize(
    ("text", "offsets", "name", "shown", "is_moved"),
    [
        # What is right stays as it is: one piece, two, with the blanks of the file.
        ("aspirin and warfarin now", "12-19", "warfarin", "@DRUG$ and @DRUG$ now", False),
        ("aspirin, beta or loop blockers", "9-12;22-29", "beta blockers", "@DRUG$ , @DRUG$", False),
        ("aspirin, beta or loop blockers", "22-29;9-12", "beta blockers", "@DRUG$ , @DRUG$", False),
        ("aspirin and  folic acid", "13-22", "folic  acid", "@DRUG$ and @DRUG$", False),
        # Worked out by hand: the text stands elsewhere than its offsets say.
        ("aspirin and warfarin now", "11-18", "warfarin", "@DRUG$ and @DRUG$ now", True),
        ("aspirin and warfarin now", "12-18", "warfarin", "@DRUG$ and @DRUG$ now", True),
        ("aspirin and warfarin now", "90-97", "warfarin", "@DRUG$ and @DRUG$ now", True),
        ("aspirin, ab, xy, ab", "16-17", "ab", "@DRUG$ , ab, xy, @DRUG$", True),
        ("aspirin, ab, xy, ab", "8-9", "ab", "@DRUG$ , @DRUG$ , xy, ab", True),
        ("aspirin, beta or loop blockers", "8-11;21-28", "beta blockers", "@DRUG$ , @DRUG$", True),
        ("aspirin, beta or loop blockers", "9-12;21-28", "beta blockers", "@DRUG$ , @DRUG$", True),
    ],
)  # fmt: skip
def test_offsets_and_texts_of_ddi(
    write: Write, text: str, offsets: str, name: str, shown: str, is_moved: bool
) -> None:
    data = load(str(write("a.xml", ddi(text, offsets, name))), **RELATION, format="ddi")
    assert texts(data) == [(shown, None, "false"), (shown, None, "DDI-int")]
    moved = {"entities found elsewhere in the text than their offsets say": 1}
    assert data.train.reports == (moved if is_moved else {})


@pytest.mark.parametrize(
    ("offsets", "name"),
    [
        ("12-19", "coumarin"),
        ("12-19", "Warfarin"),
        ("12-19", ""),
        ("12-15;20-22", "war ibu"),
        ("20-22;12-15", "now ibu"),
    ],
)
def test_an_entity_whose_text_is_nowhere_is_set_aside(
    write: Write, offsets: str, name: str
) -> None:
    other = ddi("aspirin and ibuprofen", "12-20", "ibuprofen")
    sentence = ddi("aspirin and warfarin now", offsets, name)
    body = "".join(part[10:-11] for part in (other, sentence))
    data = load(str(write("a.xml", f"<document>{body}</document>")), **RELATION, format="ddi")
    assert len(data.train.examples) == 2
    assert data.train.reports == {
        "entities whose text is not there left out": 1,
        "pairs of an entity whose text is not there left out": 2,
    }


def test_what_a_pair_says_of_itself(write: Write) -> None:
    text = ("aspirin and warfarin", "12-19", "warfarin")
    contradiction = ddi(*text, pair='ddi="false" type="effect"')
    other = ddi(*text)
    body = "".join(part[10:-11] for part in (contradiction, other))
    data = load(str(write("a.xml", f"<document>{body}</document>")), **RELATION, format="ddi")
    assert [label for _, _, label in texts(data)] == ["DDI-int", "false", "DDI-int"]
    assert data.train.reports == {"pairs that do not interact and have a type left out": 1}
    for pair in ('type="effect"', 'ddi="TRUE" type="effect"', 'ddi=""'):
        with pytest.raises(BadInput, match="a.xml sentence s has a pair whose ddi is "):
            load(str(write("a.xml", ddi(*text, pair=pair))), **RELATION, format="ddi")


def test_entities_that_cannot_be_told_apart(write: Write) -> None:
    twice = ddi("aspirin and warfarin", "12-19", "warfarin").replace('id="b"', 'id="a"')
    with pytest.raises(BadInput, match="sentence s has the entity a twice"):
        load(str(write("a.xml", twice)), **RELATION, format="ddi")
    beyond = ddi("aspirin and warfarin", "12-99", "").replace(' text=""', "")
    with pytest.raises(BadInput, match=r"task.train has no example \(1 entities whose text is"):
        load(str(write("a.xml", beyond)), **RELATION, format="ddi")


CHEMPROT = {
    "abstracts": "7\tAspirin in cells.\tHere aspirin blocks COX-1, and zinc binds COX-2.\n",
    # Aspirin 0, aspirin 23, COX-1 38, zinc 49, COX-2 60: counted by hand.
    "entities": (
        "7\tT1\tCHEMICAL\t23\t30\taspirin\n7\tT2\tGENE-Y\t38\t43\tCOX-1\n"
        "7\tT3\tCHEMICAL\t49\t53\tzinc\n7\tT4\tGENE-N\t60\t65\tCOX-2\n"
    ),
    "gold_standard": "7\tCPR:4\tArg1:T1\tArg2:T2\n7\tCPR:3\tArg1:T3\tArg2:T4\n",
}
SHOWN = [
    ("Here @CHEMICAL$ blocks @GENE$ , and zinc binds COX-2.", "CPR:4"),
    ("Here @CHEMICAL$ blocks COX-1, and zinc binds @GENE$ .", "false"),
    ("Here aspirin blocks @GENE$ , and @CHEMICAL$ binds COX-2.", "false"),
    ("Here aspirin blocks COX-1, and @CHEMICAL$ binds @GENE$ .", "CPR:3"),
]


def chemprot(write: Write, **changes: tuple[str, str]) -> TaskData:
    """The folder with one thing changed in a file: what was, and what is."""
    for kind, text in CHEMPROT.items():
        was, now = changes.get(kind, ("", ""))
        assert was in text
        folder = write(f"cp/x_{kind}.tsv", text.replace(was, now, 1) if was else text + now).parent
    return load(str(folder), **RELATION, format="chemprot")


def test_chemprot_offsets_that_are_right(write: Write) -> None:
    data = chemprot(write)
    assert [(text, label) for text, _, label in texts(data)] == SHOWN
    assert not data.train.reports


@pytest.mark.parametrize(
    "change",
    [
        {"entities": ("49\t53\tzinc", "48\t52\tzinc")},
        {"entities": ("49\t53\tzinc", "49\t52\tzinc")},
        {"entities": ("23\t30\taspirin", "18\t25\taspirin")},
        {"entities": ("60\t65\tCOX-2", "160\t165\tCOX-2")},
    ],
)
def test_chemprot_offsets_that_are_wrong(write: Write, change: dict[str, tuple[str, str]]) -> None:
    data = chemprot(write, **change)
    assert [(text, label) for text, _, label in texts(data)] == SHOWN
    assert data.train.reports == {"entities found elsewhere in the text than their offsets say": 1}


def test_an_html_entity_moves_all_that_follows(write: Write) -> None:
    """The case of a page saved with &#945; for one character."""
    data = chemprot(write, abstracts=("cells", "&#945; cells"))
    assert [(text, label) for text, _, label in texts(data)] == SHOWN
    assert data.train.reports == {"entities found elsewhere in the text than their offsets say": 4}


def test_a_chemical_whose_text_is_nowhere(write: Write) -> None:
    data = chemprot(write, entities=("zinc", "iron"))
    assert [label for _, _, label in texts(data)] == ["CPR:4", "false"]
    assert data.train.reports == {
        "entities whose text is not there left out": 1,
        "pairs of an entity whose text is not there left out": 1,
    }


def test_arguments_in_the_other_order_are_the_same_pair(write: Write) -> None:
    data = chemprot(write, gold_standard=("Arg1:T1\tArg2:T2", "Arg1:T2\tArg2:T1"))
    assert [(text, label) for text, _, label in texts(data)] == SHOWN
    data = chemprot(write, gold_standard=("Arg1:T1\tArg2:T2", "Arg1:T1\tArg2:T3"))
    assert data.train.reports == {"gold relations of two chemicals or two genes left out": 1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"entities": ("GENE-N", "PROTEIN")}, "line 4 has an entity of type 'PROTEIN'"),
        ({"entities": ("T3", "T1")}, "line 3 has the entity T1 of 7 again"),
        ({"gold_standard": ("CPR:4", "INHIBITOR")}, "line 1 has the relation 'INHIBITOR'"),
        ({"abstracts": ("", "7\tAgain\tIt is.\n")}, "line 2 has the abstract 7 again"),
    ],
)
def test_what_chemprot_does_not_have(
    write: Write, change: dict[str, tuple[str, str]], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        chemprot(write, **change)


def test_entities_without_their_abstract(write: Write) -> None:
    data = chemprot(write, entities=("", "8\tT1\tCHEMICAL\t0\t3\tabc\n"))
    assert data.train.reports == {
        "entities of an abstract that the folder does not have left out": 1
    }
