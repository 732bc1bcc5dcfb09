import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert.config import PretrainConfig
from bert.folders.model_files import find_model, path_of
from bert.pretrain import identity
from distributed.errors import BadInput
from tests.unit.conftest import damage
from training.folder import RunFolder, read_metrics, run_folder_of, truncate_metrics
from training.identity import check_identity, write_identity

MakeRun = Callable[..., RunFolder]


def identity_of(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    merged = {
        name: {**settings.get(name, {}), **change} if isinstance(change, dict) else change
        for name, change in {**settings, **changes}.items()
    }
    return identity(
        PretrainConfig.model_validate(merged),
        data_fingerprint="a" * 64,
        vocab_sha256="b" * 64,
        init_fingerprint=None,
        distillation=None,
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "demo")


def test_layout(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = run_folder_of(PretrainConfig.model_validate(settings))
    assert folder.path == tmp_path / "runs" / "demo"
    assert not folder.path.exists(), "naming a folder does not create it"
    folder.create()
    folder.create()
    folder.write_config("name: a\n")
    folder.write_config("name: demo\n")
    assert folder.config_file.read_text() == "name: demo\n"
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"config.yaml", "tensorboard", "checkpoints", "logs"}


@pytest.mark.parametrize(
    "change",
    [
        {"launch": {"num_workers": 3, "max_failures": 0}},
        {"zero": {"stage": 3}},
        {"checkpoint": {"interval_steps": 7}},
        {"evaluation": {"rows": 2}},
        {"train": {"micro_batch_rows": 1, "log_interval_steps": 1}},
        {"data": {"shards": ["elsewhere/general"]}},
        {"name": "other"},
    ],
)
def test_what_may_change(
    folder: RunFolder, settings: dict[str, Any], change: dict[str, Any]
) -> None:
    write_identity(folder, identity_of(settings))
    assert check_identity(folder, identity_of(settings, **change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 2}, "(seed was 1 and is now 2)"),
        ({"train": {"learning_rate": 0.01}}, "(train.learning_rate was 0.001 and is now 0.01)"),
        ({"train": {"precision": "fp32"}}, '(train.precision was "bf16" and is now "fp32")'),
        ({"train": {"betas": [0.9, 0.95]}}, "train.betas was [0.9, 0.98] and is now [0.9, 0.95]"),
        ({"train": {"total_steps": 60}}, "train.total_steps was 100 and is now 60"),
        ({"train": {"global_batch_rows": 8}}, "train.global_batch_rows was 4 and is now 8"),
        ({"model": {"num_layers": 3}}, "model.num_layers was 2 and is now 3"),
        ({"data": {"row_tokens": 128}}, "data.row_tokens was 64 and is now 128"),
        ({"sparsity": {"final_sparsity": 0.5}}, "sparsity.final_sparsity was 0.75 and is now 0.5"),
        ({"sparsity": None}, '"prune_interval_steps": 100} and is now null)'),
    ],
)
def test_what_may_not_change(
    folder: RunFolder, settings: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    write_identity(folder, identity_of(settings))
    with pytest.raises(BadInput) as caught:
        check_identity(folder, identity_of(settings, **change))
    assert expected in str(caught.value)
    assert "choose another name or restore the old values" in str(caught.value)


def test_every_difference_is_listed(folder: RunFolder, settings: dict[str, Any]) -> None:
    write_identity(folder, identity_of(settings))
    new = identity_of(settings, seed=2, train={"total_steps": 200})
    new["data"]["fingerprint"] = "c" * 64
    with pytest.raises(BadInput) as caught:
        check_identity(folder, new)
    for part in (
        "seed was 1 and is now 2",
        "train.total_steps was 100 and is now 200",
        "the content of data.shards was aaaaaaaaaaaa and is now cccccccccccc",
    ):
        assert part in str(caught.value)


def test_an_option_that_later_code_knows_and_that_is_off_changes_nothing(
    folder: RunFolder, settings: dict[str, Any]
) -> None:
    write_identity(folder, identity_of(settings))
    new = identity_of(settings)
    new["train"] |= {"invented_later": None}
    assert check_identity(folder, new)
    new["train"] |= {"invented_later": 3}
    with pytest.raises(BadInput, match="train.invented_later was null and is now 3"):
        check_identity(folder, new)


def test_more_steps_have_a_sentence_of_their_own(
    folder: RunFolder, settings: dict[str, Any]
) -> None:
    write_identity(folder, identity_of(settings))
    with pytest.raises(BadInput, match="run of 100 steps and cannot be extended to 200") as caught:
        check_identity(folder, identity_of(settings, train={"total_steps": 200}))
    assert f"another name and set model.init_from to {folder.path}" in str(caught.value)


def test_a_new_folder_holds_no_run(folder: RunFolder, settings: dict[str, Any]) -> None:
    assert not check_identity(folder, identity_of(settings))
    assert not folder.path.exists(), "checking writes nothing"
    folder.create()
    assert not check_identity(folder, identity_of(settings))


def test_a_folder_that_cannot_be_identified(folder: RunFolder, settings: dict[str, Any]) -> None:
    (folder.checkpoints / "step-00000010").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"has checkpoints but no identity\.json"):
        check_identity(folder, identity_of(settings))
    for text in ("{", "[]"):
        folder.identity_file.write_text(text)
        with pytest.raises(BadInput, match=r"identity\.json is not readable"):
            check_identity(folder, identity_of(settings))


def test_identity_is_json_and_counts_content_not_paths(settings: dict[str, Any]) -> None:
    fields = identity_of(settings)
    assert json.loads(json.dumps(fields)) == fields
    assert "vocab" not in fields["model"]
    assert "shards" not in fields["data"]
    assert "init_from" not in fields["model"]


def write_metrics(file: Path, *steps: int, tail: str = "") -> None:
    file.write_text("".join(f'{{"step": {step}, "x": 1.50}}\n' for step in steps) + tail)


def test_truncated_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write_metrics(file, 10, 20, 30, 40, tail='{"step": 50, "x')
    assert [record["step"] for record in read_metrics(file)] == [10, 20, 30, 40]
    truncate_metrics(file, 20)
    assert file.read_text() == '{"step": 10, "x": 1.50}\n{"step": 20, "x": 1.50}\n'
    before = file.stat()
    truncate_metrics(file, 20)
    assert file.stat().st_ino == before.st_ino, "nothing to drop, nothing written"
    truncate_metrics(file, 0)
    assert file.read_text() == ""
    assert list(tmp_path.iterdir()) == [file], "no temporary file is left"


def test_a_torn_line_that_was_written_past(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write_metrics(file, 10, tail='{"step": 2{"step": 20}\n[1]\n{"step": 30}\n')
    assert [record["step"] for record in read_metrics(file)] == [10, 30]
    truncate_metrics(file, 30)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 30]


def test_a_whole_last_line_without_its_newline_is_torn(tmp_path: Path) -> None:
    # The next record would be appended to it.
    file = tmp_path / "metrics.jsonl"
    write_metrics(file, 10, tail='{"step": 20}')
    truncate_metrics(file, 20)
    assert [record["step"] for record in read_metrics(file)] == [10]


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    truncate_metrics(tmp_path / "metrics.jsonl", 10)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_a_run_is_its_newest_good_checkpoint(make_run: MakeRun) -> None:
    run = make_run(10, 20)
    newest = run.checkpoints / "step-00000020"
    assert path_of(find_model(run.path)) == newest
    assert path_of(find_model(newest)) == newest
    damage(newest)
    assert path_of(find_model(run.path)) == run.checkpoints / "step-00000010"
    with pytest.raises(BadInput, match="SHA-256"):
        find_model(newest)
    assert path_of(find_model(newest, verified=True)) == newest, "once is enough"
    damage(run.checkpoints / "step-00000010")
    with pytest.raises(BadInput, match=r"no good checkpoint \(.*step-00000020.*is damaged"):
        find_model(run.path)


def test_a_run_keeps_its_names_on_disk(folder: RunFolder) -> None:
    """Runs of earlier releases are found by them."""
    places = [folder.checkpoints, folder.best, folder.results_file, folder.identity_file]
    names = ["checkpoints", "best", "results.json", "identity.json"]
    assert places == [folder.path / name for name in names]


def test_of_a_run_that_is_scored_it_is_the_one_that_dev_chose(make_run: MakeRun) -> None:
    run = make_run(10, 20)
    shutil.copytree(run.checkpoints / "step-00000010", run.best / "step-00000010")
    run.results_file.write_text("{}")
    assert path_of(find_model(run.path)) == run.best / "step-00000010"


def test_other_models(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(BadInput, match="has no checkpoint yet"):
        find_model(make_run().path)
    with pytest.raises(BadInput, match="does not exist"):
        find_model(tmp_path / "nowhere")
    (tmp_path / "exported").mkdir()
    with pytest.raises(BadInput, match="give a run, a checkpoint or a Hugging Face folder"):
        find_model(tmp_path / "exported")
    (tmp_path / "exported" / "config.json").touch()
    with pytest.raises(BadInput, match="has no model.safetensors"):
        find_model(tmp_path / "exported")
