"""The environment variables in which a launcher tells a process who it is, read or refused.

torchrun and Ray Train set all of them. A variable that was left over from another job, is empty or
was set by hand alone would make a start wait half an hour for processes that nobody started: each
function here refuses that in one sentence that names the variable.
"""

import os

from distributed.errors import BadInput

_REMEDY = "start the processes with torchrun, or unset {} to train in this process alone"
# Launchers that start several processes and set neither RANK nor WORLD_SIZE.
_OTHER_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "SLURM_STEP_NUM_TASKS": "srun",
}
_LARGEST_PORT = 65535


def read_ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) of this process; (0, 1, 0) where no launcher started it.

    Raises:
        BadInput: a variable is no number, is missing beside the others, or contradicts them.
    """
    rank = read_number("RANK", least=0)
    world_size = read_number("WORLD_SIZE", least=1)
    if rank is None and world_size is not None and world_size > 1:
        raise BadInput(
            f"WORLD_SIZE is {world_size} and RANK is not set: {_REMEDY.format('WORLD_SIZE')}"
        )
    if rank is not None and world_size is None:
        raise BadInput(f"RANK is {rank} and WORLD_SIZE is not set: {_REMEDY.format('RANK')}")
    if rank is None and world_size is None:
        _refuse_other_launchers()
    rank, world_size = rank or 0, world_size or 1
    if rank >= world_size:
        raise BadInput(
            f"RANK is {rank} and WORLD_SIZE is {world_size}, but ranks count from 0: "
            + _REMEDY.format("both")
        )
    return rank, world_size, read_local_rank(world_size)


def read_local_rank(world_size: int) -> int:
    """This process's number among those of its machine.

    Raises:
        BadInput: it is no number, or not below the number of processes.
    """
    local_rank = read_number("LOCAL_RANK", least=0)
    # DeepSpeed reads Open MPI's as well, and stops where the two differ.
    mpi_local_rank = read_number("OMPI_COMM_WORLD_LOCAL_RANK", least=0)
    if local_rank is not None and mpi_local_rank not in (None, local_rank):
        raise BadInput(
            f"OMPI_COMM_WORLD_LOCAL_RANK is {mpi_local_rank} and LOCAL_RANK is {local_rank}: unset "
            "the one that is not this launcher's"
        )
    name = "LOCAL_RANK" if local_rank is not None else "OMPI_COMM_WORLD_LOCAL_RANK"
    found = local_rank if local_rank is not None else mpi_local_rank
    on_this_machine = min(world_size, read_local_world_size() or world_size)
    if found is not None and found >= on_this_machine:
        raise BadInput(
            f"{name} is {found}, but it counts from 0 and there "
            + ("is 1 process" if on_this_machine == 1 else f"are {on_this_machine} processes")
            + f" on this machine: unset {name}, or start with torchrun"
        )
    return found or 0


def read_local_world_size() -> int | None:
    """How many processes torchrun started on this machine; None without torchrun.

    Raises:
        BadInput: LOCAL_WORLD_SIZE is no number.
    """
    return read_number("LOCAL_WORLD_SIZE", least=1)


def read_master(world_size: int) -> tuple[str, int]:
    """Host and port where the processes meet: the process of rank 0, or torchrun, listens there.

    Raises:
        BadInput: MASTER_ADDR or MASTER_PORT is missing or no address.
    """
    address = os.environ.get("MASTER_ADDR", "").strip()
    port = read_number("MASTER_PORT", least=1, most=_LARGEST_PORT) if address else None
    if not address or port is None:
        missing = "MASTER_PORT" if address else "MASTER_ADDR"
        how = "empty" if missing in os.environ else "not set"
        raise BadInput(
            f"WORLD_SIZE is {world_size} and {missing} is {how}, so the processes cannot meet: "
            + _REMEDY.format("RANK and WORLD_SIZE")
        )
    return address, port


def is_under_torchrun() -> bool:
    """Whether torchrun started this process.

    Raises:
        BadInput: TORCHELASTIC_RUN_ID is set without RANK, so it is left over from another job.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if "RANK" not in os.environ:
        raise BadInput(
            "TORCHELASTIC_RUN_ID is set and RANK is not: start the process with torchrun, or unset "
            "TORCHELASTIC_RUN_ID"
        )
    return True


def read_number(
    name: str, *, least: int, most: int | None = None, launcher: str = "torchrun"
) -> int | None:
    """The whole number in an environment variable; None if it is not set.

    Args:
        name: of the variable.
        least: the smallest number it may hold.
        most: the largest.
        launcher: who sets it, for the message.

    Raises:
        BadInput: it holds something else, or nothing.
    """
    text = os.environ.get(name)
    if text is None:
        return None
    # int() would also take 1_0 and the digits of other scripts.
    digits = text.strip()
    if digits.isascii() and digits.isdigit():
        number = int(digits)
        if number >= least and (most is None or number <= most):
            return number
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    how = f"{text!r}" if text.strip() else "empty"
    raise BadInput(
        f"the environment variable {name} is {how}: it must be a whole number, {bounds}, or not "
        f"be set at all (unset it, or start with {launcher}, which sets it)"
    )


def read_restart_count() -> int:
    """How often SLURM has started this job again; 0 outside SLURM.

    Raises:
        BadInput: SLURM_RESTART_COUNT is no number.
    """
    return read_number("SLURM_RESTART_COUNT", least=0, launcher="sbatch") or 0


def _refuse_other_launchers() -> None:
    for name, launcher in _OTHER_LAUNCHERS.items():
        processes = read_number(name, least=0)
        if processes is not None and processes > 1:
            raise BadInput(
                f"{launcher} started {processes} processes ({name}) and RANK is not set, so each "
                f"of them would work alone: {_REMEDY.format(name)}"
            )
