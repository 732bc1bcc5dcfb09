"""Variables of a launcher that were left over or typed by hand are refused by name, at once."""

import os

import pytest
import torch

from distributed.errors import BadInput
from distributed.launcher import (
    is_under_torchrun,
    read_master,
    read_ranks,
    read_restart_count,
)
from distributed.world import detect_topology, has_gpu_for_each_process

PREFIXES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "SLURM_", "TORCHELASTIC_")
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (5, 8, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"RANK": " 1 ", "WORLD_SIZE": "2"}, (1, 2, 0)),
        # A batch job has SLURM's variables of a job; a step of one task, or torchrun's, is fine.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1, 0)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, (0, 1, 0)),
        (TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"}, (5, 8, 1)),
        (TORCHRUN | {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (5, 8, 1)),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            (3, 4, 1),  # as mpirun's users export them; DeepSpeed takes Open MPI's local rank too
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (0, 1, 0)),
    ],
)
def test_what_a_launcher_sets(
    variables: dict[str, str], ranks: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    assert read_ranks() == ranks
    topology = detect_topology(use_gpu=False)
    assert (topology.rank, topology.world_size, topology.local_rank) == ranks


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK is not set: .*torchrun, or unset WORLD_"),
        ({"WORLD_SIZE": ""}, "variable WORLD_SIZE is empty: .*unset it, or start with torchrun"),
        ({"WORLD_SIZE": "  "}, "variable WORLD_SIZE is empty"),
        ({"WORLD_SIZE": "two"}, "variable WORLD_SIZE is 'two': it must be a whole number"),
        ({"WORLD_SIZE": "0"}, "variable WORLD_SIZE is '0': it must be a whole number, at least 1"),
        ({"WORLD_SIZE": "-1"}, "variable WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "2.0"}, "variable WORLD_SIZE is '2.0'"),
        ({"WORLD_SIZE": "1_0"}, "variable WORLD_SIZE is '1_0'"),
        ({"RANK": "0"}, "RANK is 0 and WORLD_SIZE is not set: .*or unset RANK"),
        ({"RANK": "3"}, "RANK is 3 and WORLD_SIZE is not set"),
        ({"RANK": ""}, "variable RANK is empty"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "variable RANK is empty"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "variable RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2, but ranks count from 0"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK is 1 and WORLD_SIZE is 1"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, but .* there is 1 process on this machine"),
        ({"LOCAL_RANK": "cuda:0"}, "variable LOCAL_RANK is 'cuda:0'"),
        ({"LOCAL_RANK": ""}, "variable LOCAL_RANK is empty"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK is 4, but .* there are 4 processes"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "all"}, "variable LOCAL_WORLD_SIZE is 'all'"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "variable LOCAL_WORLD_SIZE is '0'"),
        (
            TORCHRUN | {"OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            "OMPI_COMM_WORLD_LOCAL_RANK is 0 and LOCAL_RANK is 1: unset",
        ),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3"}, "OMPI_COMM_WORLD_LOCAL_RANK is 3"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            r"mpirun started 2 processes \(OMPI_COMM_WORLD_SIZE\) and RANK is not set",
        ),
        ({"PMI_SIZE": "2"}, r"mpiexec started 2 processes \(PMI_SIZE\)"),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"},
            r"srun started 4 processes \(SLURM_STEP_NUM_TASKS\) and RANK is not set",
        ),
    ],
)
def test_what_cannot_be_right(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(BadInput, match=told) as caught:
        detect_topology(use_gpu=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "WORLD_SIZE is 2 and MASTER_ADDR is not set, .*unset RANK and WORLD_SIZE"),
        ({"MASTER_ADDR": "", "MASTER_PORT": "1"}, "MASTER_ADDR is empty"),
        ({"MASTER_ADDR": "node0"}, "MASTER_PORT is not set"),
        ({"MASTER_ADDR": "node0", "MASTER_PORT": ""}, "variable MASTER_PORT is empty"),
        ({"MASTER_ADDR": "node0", "MASTER_PORT": "http"}, "variable MASTER_PORT is 'http'"),
        ({"MASTER_ADDR": "node0", "MASTER_PORT": "65536"}, "from 1 to 65535"),
        ({"MASTER_ADDR": "node0", "MASTER_PORT": "0"}, "from 1 to 65535"),
    ],
)
def test_where_the_processes_meet(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(BadInput, match=told):
        read_master(2)
    set_all(monkeypatch, TORCHRUN)
    assert read_master(8) == ("node0", 29500)


def test_how_many_processes_there_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert has_gpu_for_each_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert not has_gpu_for_each_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    with pytest.raises(BadInput, match="LOCAL_WORLD_SIZE is empty"):
        has_gpu_for_each_process()


def test_a_local_rank_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    set_all(monkeypatch, TORCHRUN)
    with pytest.raises(BadInput, match=r"LOCAL_RANK is 1, and this machine has 1 GPU\(s\)"):
        detect_topology(use_gpu=True)


def test_torchrun_is_known_by_all_that_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_under_torchrun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(BadInput, match="TORCHELASTIC_RUN_ID is set and RANK is not"):
        is_under_torchrun()
    monkeypatch.setenv("RANK", "0")
    assert is_under_torchrun()


@pytest.mark.parametrize("text", ["", "once", "-1"])
def test_slurms_count_of_starts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert read_restart_count() == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert read_restart_count() == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", text)
    with pytest.raises(BadInput, match="SLURM_RESTART_COUNT is .*start with sbatch"):
        read_restart_count()
