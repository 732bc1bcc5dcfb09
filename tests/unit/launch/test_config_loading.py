import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bert.config import PretrainConfig
from distributed.errors import BadInput
from launch.config_loading import find_nearest, list_fields, load_config
from training.config import dump_yaml

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
Write = Callable[..., Path]


def refusal(path: Path, *overrides: str) -> str:
    """The sentence that `load_config` refuses with: always one, which names no Python class."""
    with pytest.raises(BadInput) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"pydantic|instance of|<class|validation error|Value error", message)
    return message


def test_at_least_one_configuration_is_shipped() -> None:
    assert CONFIGS, "configs/ holds no YAML file"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configuration_is_valid(path: Path) -> None:
    config = load_config(path)
    assert PretrainConfig.model_validate(yaml.safe_load(dump_yaml(config))) == config


def test_file_and_overrides(write_config: Write) -> None:
    path = write_config()
    config = load_config(
        path,
        [
            "train.learning_rate=5e-4",
            "train.betas=[0.8, 0.9]",
            "zero.stage=3",
            "sparsity=null",
            "evaluation.sets.pubmed=data/pubmed-validation",
            "launch.use_gpu=false",
            "name=2024",
        ],
    )
    assert config.train.learning_rate == 5e-4
    assert config.train.betas == (0.8, 0.9)
    assert config.zero.stage == 3
    assert config.sparsity is None
    assert set(config.evaluation.sets) == {"general", "pubmed"}
    assert config.launch.use_gpu is False
    assert config.name == "2024"
    assert load_config(path).train.learning_rate == 1e-3, "the file is not changed"


def test_exponent_without_point_is_a_number_everywhere(write_config: Write) -> None:
    path = write_config()
    path.write_text(path.read_text() + "checkpoint: {interval_steps: 1e2}\n")
    config = load_config(path, ["zero.advanced.allgather_bucket_size=2e5", "sparsity=null"])
    assert config.checkpoint.interval_steps == 100
    assert config.zero.advanced == {"allgather_bucket_size": 200000.0}


def test_override_creates_a_section(write_config: Write) -> None:
    path = write_config(sparsity=None)
    config = load_config(path, ["sparsity.schedule=one_shot", "sparsity.final_sparsity=0.5"])
    assert config.sparsity is not None
    assert config.sparsity.final_sparsity == 0.5


def test_last_override_wins(write_config: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(write_config(), ["seed=3", "seed=4"]).seed == 4
    assert caplog.messages == ["seed=3 is followed by seed=4, which counts"]
    caplog.clear()
    config = load_config(write_config(), ["zero.stage=3", "zero={stage: 1}", "seed=5", "seed=5"])
    assert config.zero.stage == 1
    assert caplog.messages == ["zero.stage=3 is followed by zero={stage: 1}, which counts"]
    caplog.clear()
    load_config(write_config(), ["zero={stage: 1}", "zero.offload_optimizer=true", "seed=5"])
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("zero.stag=3", "is not a known field: did you mean zero.stage?"),
        ("trian.total_steps=3", "did you mean train?"),
        ("num_workers=3", "did you mean launch.num_workers?"),
        ("train.num_workers=3", "did you mean launch.num_workers?"),
        ("sparsity.final_sparsty=0.5", "did you mean sparsity.final_sparsity?"),
        ("zero.qqqq=1", "choose one of zero.stage, zero.offload_optimizer"),
        ("train.betas=[0.9]", "train.betas.1 is missing on the command line: add it"),
        ("name=../up", "name '../up' cannot be a folder"),
        ("name=.hidden", "not starting with '.'"),
        ("train.warmup_steps=1000", "train.warmup_steps (1000) is above train.total_steps (100)"),
        ("sparsity.prune_end_step=100", "sparsity.prune_end_step (100) must be below"),
        ("sparsity.prune_start_step=60", "sparsity.prune_end_step (50) is before"),
        ("sparsity.schedule=frozen", "set model.init_from"),
        ("data.max_seq_len=64", "model.max_position_embeddings (32)"),
        ("launch.num_workers=5", "train.global_batch_rows (4) is below launch.num_workers (5)"),
        ("train.attention_dropout=0.1", "train.attention_dropout (0.1) must be 0"),
        ("evaluation.sets={a/b: data/x}", "evaluation.sets has the name 'a/b'"),
        ("seed", "'seed' is not of the form field=value"),
        ("=3", "is not of the form field=value"),
        ("train..x=3", "is not of the form field=value"),
        ("train.total_steps.x=3", "because train.total_steps is 100, not a section"),
        ("data.shards.0=x", 'because data.shards is ["data/general"], not a section'),
        ("train.betas=[0.9", "train.betas on the command line is not valid YAML at line 1"),
    ],
)
def test_refused(write_config: Write, override: str, expected: str) -> None:
    assert expected in refusal(write_config(), override)


@pytest.mark.parametrize(
    ("field", "value", "shown", "rule"),
    [
        ("train.total_steps", "0", "0", "input should be greater than or equal to 1"),
        ("train.total_steps", "many", '"many"', "input should be a valid integer, unable to parse"),
        ("train.learning_rate", ".nan", "NaN", "input should be a finite number"),
        ("train.learning_rate", ".inf", "Infinity", "input should be a finite number"),
        ("train.betas", "2024-02-31", '"2024-02-31"', "input should be a valid tuple"),
        ("train.betas.1", "[0.9, x]", '"x"', "input should be a valid number"),
        ("sparsity.final_sparsity", "1.0", "1.0", "input should be less than 1"),
        ("sparsity.final_sparsity", "-0.1", "-0.1", "input should be greater than or equal to 0"),
        ("data.shards", "[]", "[]", "value should have at least 1 item"),
        ("name", "", "null", "input should be a valid string"),
        ("zero", "2", "2", "it must be a section with fields of its own"),
        ("zero.stage", "4", "4", "input should be 0, 1, 2 or 3"),
        ("zero.advanced", "2", "2", "it must be a section with fields of its own"),
        ("launch.runs_dir", "[5]", "[5]", "it must be a path"),
        # Unions: members of another type than the value have no say beside the others.
        (
            "launch.use_gpu",
            "maybe",
            '"maybe"',
            "input should be 'auto' or input should be a valid boolean",
        ),
        ("launch.num_workers", "0", "0", "input should be greater than 0"),
        ("launch.num_workers", "some", '"some"', "input should be a valid integer, unable to "),
        (
            "launch.num_workers",
            "{a: 1}",
            '{"a": 1}',
            "input should be a valid integer or input should be a valid tuple",
        ),
        ("zero.advanced.a", ".nan", "NaN", "input should be a finite number"),
    ],
)
def test_a_value_that_is_refused(
    write_config: Write, field: str, value: str, shown: str, rule: str
) -> None:
    override = f"{field.removesuffix('.1')}={value}"
    message = refusal(write_config(), override)
    assert message.startswith(f"{field} on the command line is {shown}: {rule}")
    assert message.count("input should") == rule.count("input should")


def test_the_file_is_named_for_what_it_holds(write_config: Write) -> None:
    path = write_config(train={"total_steps": 0, "learning_rat": 1})
    message = refusal(path)
    assert f"train.learning_rat in {path} is not a known field" in message
    assert message.endswith("(and 1 more problem)")


def test_a_missing_field(write_config: Write, settings: dict[str, Any]) -> None:
    del settings["train"]["total_steps"], settings["model"]["vocab"]
    message = refusal(write_config())
    assert "model.vocab is missing in " in message
    assert "add it (WordPiece vocabulary, one token a line" in message
    assert message.endswith("(and 1 more problem)")


def test_one_shot_reads_only_its_start(write_config: Write) -> None:
    shot = {"schedule": "one_shot", "prune_end_step": 1000, "prune_start_step": 99}
    load_config(write_config(sparsity=shot))
    message = refusal(write_config(sparsity=shot), "sparsity.prune_start_step=100")
    assert "sparsity.prune_start_step (100) must be below train.total_steps (100)" in message


def test_frozen_with_a_source(write_config: Write) -> None:
    path = write_config(sparsity={"schedule": "frozen", "prune_end_step": None})
    assert load_config(path, ["model.init_from=runs/x"]).model.init_from == Path("runs/x")


@pytest.mark.parametrize("where", ["train.precision=fp32", "launch.use_gpu=false"])
def test_attention_dropout_where_it_is_possible(write_config: Write, where: str) -> None:
    config = load_config(write_config(), ["train.attention_dropout=0.1", where])
    assert config.train.attention_dropout == 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nseed: [1\n", "is not valid YAML at line 3"),
        ("name: a\nmodel: x: y\n", "is not valid YAML at line 2"),
        ("name: a\nseed: 1\nseed: 2\n", "at line 3, column 1: the key seed is there twice"),
        ("", "holds no fields"),
        ("- a\n", "holds no fields"),
        ("? [a]\n: b\n", "is not valid YAML"),
        ("a: \x07\n", "is not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not valid YAML at line 1"),
        ("1: 2\n", "1 in "),
    ],
)
def test_malformed_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refusal(path)
    assert "cannot be read" in refusal(tmp_path)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo_general.yaml").touch()
    (tmp_path / "other.yaml").touch()
    message = refusal(tmp_path / "demo_generl.yaml")
    assert message.endswith(f"does not exist: did you mean {tmp_path / 'demo_general.yaml'}?")


def test_missing_file_without_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in refusal(tmp_path / "no" / "demo.yaml")


def test_resolved_paths_are_absolute_and_survive_yaml(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config(launch={"runs_dir": "runs"}, model={"init_from": "../old"})
    config = load_config(path).resolved()
    assert config.data.shards == [tmp_path / "data/general"]
    assert config.evaluation.sets == {"general": [tmp_path / "data/validation"]}
    assert config.launch.runs_dir == tmp_path / "runs"
    assert config.model.init_from == tmp_path.parent / "old"
    path.write_text(dump_yaml(config))
    assert load_config(path) == config
    assert config.resolved() == config


def test_another_root(tmp_path: Path) -> None:
    from distributed.zero import ZeroConfig

    path = tmp_path / "zero.yaml"
    path.write_text("stage: 1\n")
    assert load_config(path, ["offload_optimizer=true"], root=ZeroConfig).offload_optimizer
    with pytest.raises(BadInput, match=r"did you mean stage\?"):
        load_config(path, ["stagee=1"], root=ZeroConfig)


def test_every_field_is_listed() -> None:
    fields = list_fields(PretrainConfig)
    assert {"name", "sparsity", "sparsity.schedule", "evaluation.sets", "zero.stage"} <= set(fields)
    assert find_nearest("launch.nworkers", fields) == "launch.num_workers"
    assert find_nearest("xyzzy", fields) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[1, 5]", "train.global_batch_rows (4) is below launch.num_workers (5)"),
        ("[2, 1]", "a range of workers is [fewest, most], not [2, 1]"),
        ("5", "train.global_batch_rows (4) is below launch.num_workers (5)"),
    ],
)
def test_a_number_of_workers_that_cannot_be(
    write_config: Callable[..., Path], value: str, words: str
) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(write_config(), [f"launch.num_workers={value}"])
    assert words in str(caught.value)
