"""`sparsebert prune` as a user gives it: alone, under torchrun, and with what cannot be pruned."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from bert.architecture import canonical_name, is_prunable
from launch.__main__ import main
from tests.integration.commands import Command
from tests.unit.sparsity.oracle import expected_digest, expected_keep

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dense"
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=40, num_attention_heads=2, max_position_embeddings=16, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def prune(log: Path, *arguments: Any, processes: int = 1) -> Command:
    program = (sys.executable, *(TORCHRUN if processes > 1 else ("-m",)))
    command = Command("prune", *arguments, program=program, log=log)
    command.code = command.wait()  # type: ignore[attr-defined]
    return command


def test_alone_and_under_torchrun_the_same(dense: Path, tmp_path: Path) -> None:
    reports = []
    for processes in (1, 2):
        output = tmp_path / f"sparse{processes}"
        options = (dense, output, "--sparsity", "0.9", "--json")
        command = prune(tmp_path / f"log{processes}", *options, processes=processes)
        assert command.code == 0, command.err  # type: ignore[attr-defined]
        report = json.loads(command.out)
        assert report.pop("output") == str(output)
        reports.append(report)
        BertForMaskedLM.from_pretrained(output)
    assert reports[0] == reports[1]
    tensors = load_file(dense / "model.safetensors")
    weights = {
        canonical_name(n): t.numpy().reshape(-1)
        for n, t in sorted(tensors.items())
        if is_prunable(canonical_name(n))
    }
    count = round(0.9 * sum(w.size for w in weights.values()))
    want = expected_keep(weights, count)
    assert reports[0]["digest"] == expected_digest(want)
    assert reports[0]["pruned"] == count
    got = load_file(tmp_path / "sparse2" / "model.safetensors")
    for name, tensor in got.items():
        if (keep := want.get(canonical_name(name))) is not None:
            before = tensors[name].numpy().reshape(-1)
            assert np.array_equal(tensor.numpy().reshape(-1), np.where(keep, before, 0))


def poison(dense: Path, folder: Path) -> Path:
    folder.mkdir()
    tensors = load_file(dense / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_under_torchrun_one_process_says_what_is_wrong(dense: Path, tmp_path: Path) -> None:
    poisoned, out = poison(dense, tmp_path / "poisoned"), tmp_path / "out"
    command = prune(tmp_path / "log", poisoned, out, "--sparsity", "0.5", processes=2)
    assert command.code == 1  # type: ignore[attr-defined]  # torchrun's own
    errors = [line for line in command.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {poisoned}: 1 weights of encoder.layer.1.output.dense.weight are infinite or NaN"
    ]
    assert "NonFiniteWeights" not in command.err and not out.exists()


def test_what_cannot_be_pruned_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dense: Path,
    tmp_path: Path,
) -> None:
    """Nothing is written."""

    def sparsebert(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["sparsebert", "prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, 2)
        return capsys.readouterr().err

    masked, out = tmp_path / "masked", tmp_path / "out"
    half = ("--sparsity", "0.5")
    assert sparsebert(dense, masked, *half) == ""
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "nowhere", out, *half], "nowhere is not a folder"),
        ([dense, masked, *half], "masked exists already"),
        ([dense, out, "--sparsity", "90"], "--sparsity 90: Input should be less than 1 (90 % is"),
        ([dense, out, *half, "--pattern", "3x5"], "--pattern needs weights of [outputs, inputs]"),
        ([dense, out, "--sparsity", "0.7", "--pattern", "2:4"], "--pattern 2:4 prunes at most 0.5"),
        ([masked, out, *half, "--pattern", "2:4"], "the masks from before do not fit --pattern"),
        ([poison(dense, tmp_path / "poisoned"), out, *half], "are infinite or NaN"),
        (
            [dense, out, *half, "--match", "*.nothing"],
            "has no weights that --match names: they are",
        ),
    ]
    for arguments, told in cases:
        said = sparsebert(*arguments)
        assert said.startswith("error: ") and told in said and said.count("\n") == 1
        assert not out.exists()
