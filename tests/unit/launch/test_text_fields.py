"""Text fields hold what was typed: on the command line always, in a file or the error quotes it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BeforeValidator

from bert.tasks.finetune_config import FinetuneConfig
from distributed.config import Config
from distributed.errors import BadInput
from launch.config_loading import load_config
from launch.study.plan import StudyConfig
from training.config import SlurmConfig, dump_yaml

Write = Callable[..., Path]
CONFIGS = Path(__file__).parents[3] / "configs"
INTEGER = "input should be a valid integer, unable to parse string as an integer"


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Inner(Config):
    label: str | None = None
    where: dict[str, str | int | list[str | int]] = {}


class Texts(Config):
    """Every kind of field that holds text, and numbers beside them."""

    text: str = "-"
    folder: Path = Path("-")
    maybe: str | None = "-"
    texts: list[str] = []
    pair: tuple[str, str] = ("-", "-")
    folders: dict[str, Annotated[list[Path], BeforeValidator(as_list)]] = {}
    names: dict[str, str] = {}
    inner: Inner = Inner()
    number: int = 0
    share: float | None = 0.0
    flag: bool = False


# What YAML 1.1 makes something else of: by its types, and by its syntax.
OTHER_TYPES = [
    "010", "-010", "1_000", "0x10", "0b11", "+1", "3e-5", "1e3", "1.50", ".5", "6.", ".inf", ".nan",
    "on", "Off", "yes", "NO", "true", "False", "2024-11-27", "2024-11-27 10:00:00", "2024-02-31",
]  # fmt: skip
NULLS = ["null", "~", "Null"]
SYNTAX = [
    "3e-5_bs32", "a: b", "a #b", "#", "|", ">", ">-", "*a", "&a x", "!x", "%x", "@x", "`x", "- a",
    "? a", "[a", "{a", "a]", "[::1]:6379", "[a|b]", "'", '"', "a'b", "=", "<<", "---", "...", ",",
    "1:30:00", "24:00:00", "1:30", "a\\tb", "08",
]  # fmt: skip
SAME = ["8", "2024", "-3", "1.5", "plain", "a b", "a=b", "data/x"]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "texts.yaml"
    file.write_text("{}\n")
    return file


def refusal(path: Path, *overrides: str, root: type[Config] = Texts) -> str:
    with pytest.raises(BadInput) as caught:
        load_config(path, overrides, root=root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", [*OTHER_TYPES, *NULLS, *SYNTAX, *SAME])
def test_the_command_line_is_taken_as_typed(text: str, empty: Path) -> None:
    key = re.sub("[.=]", "_", text)  # of which an override's name is made
    config = load_config(
        empty,
        [f"text={text}", f"names.a={text}", f"names.{key}=x"],
        root=Texts,
    )
    assert config.text == text
    assert config.names == {"a": text, key: "x"}
    if not text.startswith(("[", "{")):
        assert load_config(empty, [f"folder={text}"], root=Texts).folder == Path(text)
    assert load_config(empty, [f"maybe={text}"], root=Texts).maybe == (
        None if text in NULLS else text
    )


@pytest.mark.parametrize("text", [*OTHER_TYPES, *NULLS])
def test_items_on_the_command_line_are_taken_as_typed(text: str, empty: Path) -> None:
    overrides = [
        f"texts=[a, {text}]",
        f"pair=[{text}, b]",
        f"folders={{x: [{text}], {text}: [y]}}",
        f"inner={{label: b, where: {{{text}: {text}}}}}",
    ]
    config = load_config(empty, overrides, root=Texts)
    assert config.texts == ["a", text]
    assert config.pair == (text, "b")
    assert config.folders == {"x": [Path(text)], text: [Path("y")]}
    # A number that reads as typed may be one; `where` compares texts.
    assert config.inner.where == {text: text}


@pytest.mark.parametrize("text", [*OTHER_TYPES, *NULLS, *SYNTAX, *SAME, "", " "])
def test_what_was_quoted_stays_as_it_was(text: str, empty: Path) -> None:
    quoted = yaml.safe_dump(text, default_style='"', width=1000).strip()
    assert load_config(empty, [f"text={quoted}"], root=Texts).text == text
    empty.write_text(f"text: {quoted}\ntexts: [{quoted}]\nnames: {{{quoted}: {quoted}}}\n")
    config = load_config(empty, root=Texts)
    assert (config.text, config.texts, config.names) == (text, [text], {text: text})


@pytest.mark.parametrize("text", [*OTHER_TYPES, *NULLS, *SYNTAX, *SAME, "", " "])
def test_what_is_written_reads_back(text: str, empty: Path) -> None:
    config = Texts(text=text, folder=Path(text), texts=[text], names={text: text})
    empty.write_text(dump_yaml(config))
    assert load_config(empty, root=Texts) == config
    # And for those who read it with PyYAML's safe_load.
    assert Texts.model_validate(yaml.safe_load(empty.read_text())) == config


@pytest.mark.parametrize("text", [*OTHER_TYPES, *NULLS])
@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("text: {}", "text"),
        ("folder: {}", "folder"),
        ("texts: [a, {}]", "texts.1"),
        ("texts:\n  - {}", "texts.0"),
        ("pair: [{}, b]", "pair.0"),
        ("folders:\n  x: {}", "folders.x"),
        ("folders: {{x: [y, {}]}}", "folders.x.1"),
        ("names: {{x: {}}}", "names.x"),
        ("names: {{{}: x}}", "names.{}"),
        ("inner: {{where: {{x: {}}}}}", "inner.where.x"),
    ],
)
def test_a_file_is_told_the_form_in_quotes(text: str, line: str, field: str, empty: Path) -> None:
    """The sentence names the field, says what YAML reads, and its advice works."""
    empty.write_text(line.format(text) + "\n")
    told = refusal(empty)
    assert told.startswith(f"{field.format(text)} in {empty} "), told
    value = yaml.safe_load(f"- {text}")[0] if text != "2024-02-31" else "a date that does not exist"
    known = {bool: str(value).lower(), type(None): "null", int: str(value)}
    assert f"which YAML reads as {known.get(type(value), '')}" in told
    form = told.partition("for that text write ")[2]
    assert form.endswith(f'"{text}"')
    empty.write_text(line.format(form.partition(": ")[2] or form) + "\n")
    load_config(empty, root=Texts)
    assert text in empty.read_text()


@pytest.mark.parametrize("text", ["8", "2024", "-3", "1.5"])
def test_a_number_that_reads_as_typed_is_text_in_a_file_too(text: str, empty: Path) -> None:
    empty.write_text(
        f"text: {text}\nfolder: {text}\ntexts: [{text}]\nnames: {{{text}: {text}}}\n"
        f"folders: {{a: {text}}}\nmaybe: {text}\ninner: {{label: {text}}}\n"
    )
    config = load_config(empty, root=Texts)
    assert config.text == text and config.folder == Path(text) and config.texts == [text]
    assert config.names == {text: text} and config.folders == {"a": [Path(text)]}
    assert config.maybe == config.inner.label == text


def test_no_value_is_no_text(empty: Path) -> None:
    empty.write_text("maybe:\ntext: a\n")
    assert load_config(empty, root=Texts).maybe is None
    assert load_config(empty, ["maybe=x", "maybe="], root=Texts).maybe is None
    assert load_config(empty, ["text= "], root=Texts).text == " "
    empty.write_text("text:\n")
    assert refusal(empty) == f"text in {empty} is null: input should be a valid string"
    told = refusal(empty, "text=")
    assert told == "text on the command line is null: input should be a valid string"


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("number", "1_000", 1000),
        ("number", "0x10", 16),
        ("number", "1e2", 100),
        ("number", "0", 0),
        ("number", "-0", 0),
        ("share", "5e-4", 5e-4),
        ("share", "1e-4", 1e-4),
        ("share", "3", 3.0),
        ("share", "null", None),
        ("flag", "on", True),
        ("flag", "no", False),
    ],
)
def test_numbers_and_flags_stay_what_yaml_reads(
    field: str, text: str, value: Any, empty: Path
) -> None:
    assert getattr(load_config(empty, [f"{field}={text}"], root=Texts), field) == value
    empty.write_text(f"{field}: {text}\n")
    loaded = getattr(load_config(empty, root=Texts), field)
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "told"),
    [
        ("number", "010", "is 010, which YAML reads as 8, in octal: write 8 or 10"),
        ("number", "-010", "is -010, which YAML reads as -8, in octal: write -8 or -10"),
        ("share", "010", "is 010, which YAML reads as 8, in octal: write 8 or 10"),
        ("number", "yes", "is yes, which YAML reads as true: it must be a number"),
        ("share", "off", "is off, which YAML reads as false: it must be a number"),
        ("number", "1:30", f'is "1:30": {INTEGER}'),
        ("number", "2024-11-27", 'is "2024-11-27": input should be a valid integer'),
        ("number", "3e-5_bs32", f'is "3e-5_bs32": {INTEGER}'),
        ("flag", "2", "is 2: input should be a valid boolean, unable to interpret input"),
    ],
)
def test_a_number_is_not_another_one_in_silence(
    field: str, text: str, told: str, empty: Path
) -> None:
    assert refusal(empty, f"{field}={text}") == f"{field} on the command line {told}"
    empty.write_text(f"{field}: {text}\n")
    assert refusal(empty) == f"{field} in {empty} {told}"


def test_an_unknown_key_comes_first_and_all_is_counted(empty: Path) -> None:
    empty.write_text("text: 010\nnumber: on\nflagg: true\n")
    told = refusal(empty)
    assert told.startswith(f"flagg in {empty} is not a known field: did you mean flag?")
    assert told.endswith("(and 2 more problems)")


def test_later_overrides_reach_into_earlier_ones(empty: Path) -> None:
    overrides = ["names={010: 010}", "names.b=on", "inner={label: no}", "inner.where.x=1_0"]
    config = load_config(empty, overrides, root=Texts)
    assert config.names == {"010": "010", "b": "on"}
    assert config.inner.label == "no" and config.inner.where == {"x": "1_0"}
    empty.write_text("names: {a: 010}\n")
    assert "names.a in " in refusal(empty, "names.b=x")


def test_a_file_that_contains_itself(empty: Path) -> None:
    empty.write_text("texts: &a [x, *a]\n")
    assert "texts.1" in refusal(empty) and "contains itself" in refusal(empty)


@pytest.mark.parametrize("name", ["3e-5_bs32", "010", "2024-11-27", "1e3", "on", "2024", "1_000"])
def test_a_run_has_the_name_that_was_typed(name: str, write_config: Write) -> None:
    config = load_config(write_config(), [f"name={name}", "train.learning_rate=3e-5"])
    assert config.name == name and config.train.learning_rate == 3e-5
    file = CONFIGS / "tasks" / "sst2.yaml"
    overrides = [f"name={name}", f"model.init_from={name}"]
    finetune = load_config(file, overrides, root=FinetuneConfig)
    assert finetune.name == name and finetune.model.init_from == Path(name)
    study = load_config(CONFIGS / "studies" / "miniature.yaml", [f"name={name}"], root=StudyConfig)
    assert study.name == name


def test_the_texts_of_a_run(write_config: Write) -> None:
    overrides = [
        "data.shards=2024-11-27",
        "evaluation.sets={010x: [1_000, on], null: a}",
        "evaluation.sets.no=null",
        "launch.address=[::1]:6379",
        "launch.runs_dir=010",
        "sparsity.groups=[{match: 010, final_sparsity: 0.5}]",
        "sparsity.pattern=4x1",
        "slurm.time=1:30:00",
        "slurm.account=012",
        "slurm.setup=[on, 'module load x']",
    ]
    config = load_config(write_config(), overrides)
    assert config.data.shards == [Path("2024-11-27")]
    assert config.evaluation.sets == {
        "010x": [Path("1_000"), Path("on")],
        "null": [Path("a")],
        "no": [Path("null")],
    }
    assert config.launch.address == "[::1]:6379" and config.launch.runs_dir == Path("010")
    assert config.sparsity is not None and config.sparsity.groups[0].match == "010"
    assert config.slurm.time == "1:30:00" and config.slurm.account == "012"
    assert config.slurm.setup == ["on", "module load x"]


def test_the_texts_of_a_task() -> None:
    overrides = [
        "model.init_from=m",
        "task.train=[010, on]",
        "task.test=2024-11-27",
        "task.test.where={fold: 010, split: no}",
        "task.labels=[no, yes, 1, 1.0]",
        "task.label_map={0: no, on: 010}",
        "task.columns={text: 0, label: 1_0}",
        "task.label_separator=|",
        "task.merge_types=null",
    ]
    task = load_config(CONFIGS / "tasks" / "sst2.yaml", overrides[:3], root=FinetuneConfig).task
    assert task.train.paths == ["010", "on"]
    overrides[2] = "task.test={paths: 2024-11-27}"
    task = load_config(CONFIGS / "tasks" / "sst2.yaml", overrides, root=FinetuneConfig).task
    assert task.test is not None and task.test.paths == ["2024-11-27"]
    assert task.test.where == {"fold": "010", "split": "no"}
    assert task.labels == ["no", "yes", "1", "1.0"]
    assert task.label_map == {"0": "no", "on": "010"}
    assert (task.columns.text, task.columns.label) == ("0", "1_0")
    assert task.label_separator == "|" and task.merge_types is None


def test_a_tasks_file_is_told_the_form_in_quotes(tmp_path: Path) -> None:
    text = (CONFIGS / "tasks" / "sst2.yaml").read_text()
    file = tmp_path / "task.yaml"
    for old, new, told in [
        ("train: data/tasks/sst2/train.tsv", "train: 2024-11-27", 'write train: "2024-11-27"'),
        ("metrics: [accuracy]", "metrics: [accuracy]\n  labels: [no, ok]", 'write "no"'),
        ("metrics: [accuracy]", "metrics: [accuracy]\n  label_map: {on: x}", 'write "on"'),
        ("name: sst2", "name: 010", 'write name: "010"'),
    ]:
        assert old in text
        file.write_text(text.replace(old, new))
        assert refusal(file, "model.init_from=m", root=FinetuneConfig).endswith(told)


@pytest.mark.parametrize("text", ["30", "1:30:00", "1-12:00:00", "UNLIMITED"])
def test_slurms_times(text: str, empty: Path) -> None:
    empty.write_text(f"time: {text}\n")
    assert load_config(empty, root=SlurmConfig).time == text
    assert load_config(empty, [f"time={text}"], root=SlurmConfig).time == text


@pytest.mark.parametrize(
    "text",
    [
        "text: a\ntext: b\n",
        'text: a\n"text": b\n',
        "inner: {label: a, label: b}\n",
        "names: {010: a, 010: b}\n",
        "names:\n  on: a\n  'on': b\n",
        "inner: {}\nnumber: 1\ninner: {label: x}\n",
    ],
)
def test_a_repeated_key_is_refused(text: str, empty: Path) -> None:
    empty.write_text(text)
    assert re.search(r"is not valid YAML at line \d+, column \d+: the key \S+ is there twice",
                     refusal(empty))  # fmt: skip
