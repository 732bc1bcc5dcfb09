"""The nodes of a SLURM job, and a Ray cluster on them that is this job's alone."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distributed.errors import BadInput
from distributed.launcher import read_restart_count
from launch.slurm.node import RayLost, find_own_address, ray_node

# Importing Ray from a file system that a hundred nodes read at once takes long.
_START_SECONDS = 300.0
_END_SECONDS = 60.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process belongs to."""

    id: str
    node: str  # this one, the first of its nodes
    nodes: tuple[str, ...]
    restarts: int  # how often it was queued again

    @classmethod
    def from_environment(cls) -> Self:
        """The job that SLURM's variables describe.

        Raises:
            BadInput: there is none.
        """
        try:
            job, node = os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"]
            names = _scontrol("show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
        except KeyError as error:
            raise BadInput(
                f"{error.args[0]} is not set, so this is no SLURM job: start it with "
                "`sbatch launch/slurm/pretrain.sbatch CONFIG` or `sparsebert submit --slurm CONFIG`"
            ) from None
        return cls(job, node, tuple(names), read_restart_count())

    @property
    def others(self) -> list[str]:
        """The further nodes."""
        return [name for name in self.nodes if name != self.node]

    def find_own_address(self) -> str:
        """The address by which the further nodes reach this one.

        Not by this node's own name, which often means 127.0.1.1 or another network's address: from
        the way to a node at the address where SLURM itself reaches that.
        """
        if not self.others:
            return "127.0.0.1"
        other = self.others[-1]
        described = _scontrol("show", "node", other, "--oneliner").split()
        addresses = [field.partition("=")[2] for field in described if field[:9] == "NodeAddr="]
        address = addresses[0] if addresses else other
        try:
            return find_own_address(address)
        except OSError as error:
            raise RayLost(f"there is no way from {self.node} to {address} ({error})") from error

    def requeue(self) -> None:
        """Queue the job again."""
        # Before it, for SLURM ends this process while it does so, on a busy machine at once.
        say(f"job {self.id} asks to be queued again")
        done = subprocess.run(
            ["scontrol", "requeue", self.id], capture_output=True, text=True, check=False
        )
        if done.returncode > 0:  # below 0: SLURM ended scontrol too
            reason = " ".join(done.stderr.split())
            say(f"job {self.id} cannot be queued again ({reason}): submit it again to continue")


@dataclass(frozen=True)
class Cluster:
    """Ray on the nodes of the job."""

    address: str
    find_loss: Callable[[], str | None]  # what is wrong, once Ray has ended on a node


@contextmanager
def ray_on_all_nodes(
    job: SlurmJob, logs: Path, *, interrupted: Callable[[], bool]
) -> Iterator[Cluster]:
    """A Ray cluster of the job's nodes while inside, with a token of its own.

    Raises:
        RayLost: it does not come up.
        InterruptedError: while it came up, `interrupted` became true.
    """
    # In the environment only, which srun passes on: on no disk, in no list of processes.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ.pop("RAY_ADDRESS", None)
    own_address = job.find_own_address()
    with ray_node(
        own_address=own_address, head=None, log_folder=logs / job.node, interrupted=interrupted
    ) as head:
        address = head.address
        assert address is not None
        with _ray_on_other_nodes(job, address, logs) as others:

            def find_loss() -> str | None:
                if head.has_ended():
                    return f"Ray ended on {job.node}: its logs are in {logs / job.node}"
                if others is not None and others.poll() is not None:
                    return f"Ray ended on one of {', '.join(job.others)}: its logs are in {logs}"
                return None

            _await_nodes(address, len(job.nodes), find_loss, interrupted)
            yield Cluster(address, find_loss)


@contextmanager
def _ray_on_other_nodes(
    job: SlurmJob, address: str, logs: Path
) -> Iterator["subprocess.Popen[bytes] | None"]:
    if not job.others:
        yield None
        return
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    process = subprocess.Popen(
        [
            "srun",
            f"--nodes={len(job.others)}",
            f"--ntasks={len(job.others)}",
            "--ntasks-per-node=1",
            f"--nodelist={','.join(job.others)}",
            *([f"--cpus-per-task={cpus}"] if cpus else []),
            "--cpu-bind=none",  # Ray's workers share the node's CPUs, not one task's
            "--export=ALL",
            "--kill-on-bad-exit=1",
            *[sys.executable, "-m", "launch.slurm.node", address, str(logs)],
        ],
        stdin=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the nodes' sign to end
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_nodes(
    address: str, count: int, find_loss: Callable[[], str | None], interrupted: Callable[[], bool]
) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (there := sum(node["Alive"] for node in ray.nodes())) < count:
            if interrupted():
                raise InterruptedError
            if (loss := find_loss()) is not None:
                raise RayLost(loss)
            if time.monotonic() > deadline:
                raise RayLost(
                    f"{there} of {count} nodes joined Ray in {_START_SECONDS:.0f} s: can they "
                    f"reach {address}?"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        ray.shutdown()


def _scontrol(*arguments: str) -> str:
    return subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, check=True
    ).stdout


def say(sentence: str) -> None:
    """A line of the job's log, with the time: it has several starts."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), sentence, flush=True)
