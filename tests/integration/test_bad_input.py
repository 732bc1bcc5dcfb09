"""Bad input: exit code 2, one sentence on what to change, no traceback, nothing half-written."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, Command, environment
from tests.integration.conftest import VOCABULARY, Start
from tests.integration.forking import ForkServer

COMMAND_LINE = """
import sys
from launch.__main__ import main
sys.argv = ["sparsebert", *arguments]
main()
"""
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def refused(workspace: Path) -> Iterator[Refused]:
    """Run a command that must be refused and leave `runs` and `data` as they are; its sentence."""
    preload = ("bert.corpora.prepare", "launch.cluster.driver")  # which import torch
    with ForkServer(preload, env=environment(), cwd=ROOT) as server:

        def refused(*arguments: str | Path) -> str:
            out, err = workspace / "refused.out", workspace / "refused.err"
            before = list_files(workspace)
            code = server.run(COMMAND_LINE, *arguments, out=out, err=err, cwd=ROOT)
            assert (code, out.read_text()) == (2, ""), err.read_text()
            (line,) = err.read_text().splitlines()
            assert line.startswith("error: ")
            assert list_files(workspace) == before
            return line

        yield refused


def list_files(workspace: Path) -> set[Path]:
    return {path for folder in ("runs", "data") for path in (workspace / folder).rglob("*")}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.totl_steps=3"], ["train.totl_steps", "total_steps"]),
        (["sparsity.prune_end_step=40"], ["sparsity.prune_end_step", "train.total_steps (40)"]),
        (["sparsity.final_sparsity=1.0"], ["sparsity.final_sparsity"]),
        (["sparsity.final_sparsity=-0.1"], ["sparsity.final_sparsity"]),
        (["sparsity.pattern=3:2"], ["sparsity.pattern is 3:2", "write unstructured, N:M"]),
        (["sparsity.pattern=2:4"], ["sparsity.final_sparsity is", "prunes at most 0.5"]),
        (["sparsity.pattern=5x1"], ["sparsity.pattern needs weights", "that divide by [5, 1]"]),
        (
            ["sparsity.groups=[{match: nothing, final_sparsity: 0.5}]"],
            ["sparsity.groups.0.match nothing takes no prunable parameter"],
        ),
        (["train.global_batch_rows=1"], ["train.global_batch_rows", "launch.num_workers"]),
        (["data.shards=no/such/folder"], ["no/such/folder"]),
        (["model.init_from=no/such/run"], ["no/such/run", "does not exist"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_values(overrides: list[str], told: list[str], refused: Refused, config_file: Path) -> None:
    sentence = refused("pretrain", config_file, "name=refused", *overrides)
    for part in told:
        assert part in sentence


def test_truncated_shards(
    refused: Refused, config_file: Path, shards: Path, workspace: Path
) -> None:
    copy = workspace / "truncated"
    shutil.copytree(shards / "general", copy)
    tokens = copy / "tokens-00000.npy"
    os.truncate(tokens, tokens.stat().st_size - 2)
    sentence = refused("pretrain", config_file, "name=refused", f"data.shards={copy}")
    assert str(tokens) in sentence


def test_shards_of_another_vocabulary(refused: Refused, config_file: Path, workspace: Path) -> None:
    other = workspace / "other-vocab.txt"
    lines = VOCABULARY.read_text(encoding="utf-8").splitlines(keepends=True)
    other.write_text("".join(lines[:-1]), encoding="utf-8")
    sentence = refused("pretrain", config_file, "name=refused", f"model.vocab={other}")
    assert "vocab" in sentence and str(other) in sentence


def test_first_weights_of_other_dimensions(
    refused: Refused, config_file: Path, reference: tuple[Command, Path]
) -> None:
    changes = [f"model.init_from={reference[1]}", "model.intermediate_size=96"]
    sentence = refused("pretrain", config_file, "name=refused", *changes)
    assert "intermediate_size" in sentence and "96" in sentence and "64" in sentence


def test_a_run_of_another_identity(
    refused: Refused, config_file: Path, reference: tuple[Command, Path]
) -> None:
    sentence = refused("pretrain", config_file, "seed=6", "train.learning_rate=0.5")
    for part in (str(reference[1]), "seed was 5 and is now 6", "train.learning_rate"):
        assert part in sentence


def test_pubmed_that_is_not_well_formed(refused: Refused, workspace: Path, shards: Path) -> None:
    broken = workspace / "broken.xml"
    broken.write_text(
        (ROOT / "samples" / "pubmed-29768149.xml").read_text().replace("</Article>", "")
    )
    options = ["--source", "pubmed", "--input", broken, "--output", shards / "broken"]
    sentence = refused("prepare", *options, "--vocab", VOCABULARY)
    assert str(broken) in sentence


@pytest.mark.cluster
def test_more_workers_than_the_cluster_holds(
    config_file: Path, cluster: dict[str, str], start: Start, workspace: Path
) -> None:
    command = start("pretrain", config_file, "name=many", "launch.num_workers=5", env=cluster)
    assert command.wait() == 2, command.out + command.err
    (line,) = command.err.splitlines()
    assert line.startswith("error: launch.num_workers is 5")
    assert "2 CPUs" in line
    assert not (workspace / "runs" / "many").exists()


@pytest.mark.cluster
def test_a_cluster_that_does_not_answer(config_file: Path, start: Start, workspace: Path) -> None:
    env = environment(RAY_ADDRESS="127.0.0.1:1")
    command = start("pretrain", config_file, "name=unreachable", env=env)
    assert command.wait() == 2, command.out + command.err
    (line,) = command.err.splitlines()
    assert line.startswith("error: no Ray cluster answers at 127.0.0.1:1")
    assert not (workspace / "runs" / "unreachable").exists()
