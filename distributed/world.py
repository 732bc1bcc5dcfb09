"""Who this process is among all, on which device it computes, and how all meet and agree."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from distributed.errors import BadInput, first_line
from distributed.launcher import (
    read_local_rank,
    read_local_world_size,
    read_master,
    read_ranks,
)

log = logging.getLogger(__name__)
torch_stores: Any = dist  # torch's stubs lack its stores

# While rank 0 checks a run's data and checkpoints, the others wait. NCCL's own default is 10 min.
_TIMEOUT = timedelta(minutes=30)
# A start that takes longer says what it waits for, and says it again.
_PATIENCE_SECONDS = 5.0
_REPEAT_SECONDS = 60.0
_POLL_SECONDS = 0.05
_MOST_RANKS_NAMED = 8


@dataclass(frozen=True)
class Topology:
    """One process of `world_size`; `local_rank` numbers the processes of one machine."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what only one may write."""
        return self.rank == 0


def detect_topology(*, use_gpu: bool) -> Topology:
    """Read the variables that torchrun and Ray Train set; one process on its own has none.

    Raises:
        BadInput: naming a variable that cannot be right, such as one left over from another job.
    """
    if dist.is_initialized():  # the launcher's own group, or the caller's, is right
        rank, world_size = dist.get_rank(), dist.get_world_size()
        local_rank = read_local_rank(world_size)
    else:
        rank, world_size, local_rank = read_ranks()
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise BadInput(
                f"LOCAL_RANK is {local_rank}, and this machine has {torch.cuda.device_count()} "
                "GPU(s): start no more processes than there are GPUs"
            )
        torch.cuda.set_device(device)
    return Topology(rank=rank, world_size=world_size, local_rank=local_rank, device=device)


def ensure_process_group(topology: Topology, init_method: str | None = None) -> None:
    """Collective: join the process group unless the launcher (Ray Train) has done so already.

    A start that waits for other processes logs for how many, after a few seconds.

    Raises:
        BadInput: MASTER_ADDR or MASTER_PORT is missing or wrong, or processes did not come.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if topology.device.type == "cuda" else "gloo"
    join = partial(
        dist.init_process_group,
        backend,
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=_TIMEOUT,
    )
    if init_method is not None:
        join(init_method=init_method)
        return
    with _told_if_slow(topology) as waiting:
        # One process on its own needs no address and no port, whatever MASTER_ADDR says.
        alone = topology.world_size == 1
        store = torch_stores.HashStore() if alone else _meet(topology, waiting)
        join(store=store)


def has_gpu_for_each_process() -> bool:
    """Whether this machine has a GPU for each of the processes that torchrun started on it."""
    return torch.cuda.device_count() >= (read_local_world_size() or 1)


@dataclass
class _Waiting:
    """What a start waits for; the waiting thread changes it, another one logs it."""

    reason: str


@contextmanager
def _told_if_slow(topology: Topology) -> Iterator[_Waiting]:
    """Log `reason` while what is inside takes long; one process of each machine does."""
    waiting = _Waiting(f"waiting until the {topology.world_size} processes are connected")
    done = threading.Event()

    def tell() -> None:
        seconds = _PATIENCE_SECONDS
        while not done.wait(seconds):
            log.warning("%s", waiting.reason)
            seconds = _REPEAT_SECONDS

    teller = threading.Thread(target=tell, name="start", daemon=True)
    if topology.local_rank == 0:
        teller.start()
    try:
        yield waiting
    finally:
        done.set()
        if teller.is_alive():
            teller.join()


def _meet(topology: Topology, waiting: _Waiting) -> Any:
    """Collective: a store that all processes have reached.

    The same as torch's env:// makes, but torch's would block where nobody can tell who is missing.
    """
    address, port = read_master(topology.world_size)
    connected, waiting.reason = waiting.reason, (
        f"waiting for a connection to {address}:{port} (MASTER_ADDR, MASTER_PORT), where the "
        f"process of rank 0 of {topology.world_size} (WORLD_SIZE) listens"
    )  # fmt: skip
    is_torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = torch_stores.TCPStore(
            address,
            port,
            topology.world_size,
            is_master=topology.is_first and not is_torchruns,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        raise BadInput(
            f"the processes cannot meet at {address}:{port} (MASTER_ADDR, MASTER_PORT), which must "
            f"be a free port on the machine of rank 0: {first_line(error)}"
        ) from None
    # After a restart, torchrun may keep its store, and the last start's keys in it.
    keys = torch_stores.PrefixStore(
        f"here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )
    keys.set(str(topology.rank), "yes")
    _await_all(topology, keys, waiting)
    waiting.reason = connected
    return torch_stores.PrefixStore("default_pg", store)


def _await_all(topology: Topology, keys: Any, waiting: _Waiting) -> None:
    everyone = [str(rank) for rank in range(topology.world_size)]
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    told_at = 0.0
    while not keys.check(everyone):
        if time.monotonic() >= told_at:  # to ask for each rank alone is more work
            missing = [rank for rank in everyone if not keys.check([rank])]
            named = ", ".join(missing[:_MOST_RANKS_NAMED])
            some = f"{len(missing)} of {topology.world_size} processes (WORLD_SIZE): rank {named}"
            some += ", ..." if len(missing) > _MOST_RANKS_NAMED else ""
            waiting.reason = f"waiting for {some}"
            told_at = time.monotonic() + 1.0
        if time.monotonic() > deadline:
            raise BadInput(
                f"{some} did not come within {_TIMEOUT.total_seconds() / 60:g} minutes: start "
                "them, or start fewer"
            )
        time.sleep(_POLL_SECONDS)


def _on_wire(tensor: torch.Tensor) -> torch.Tensor:
    # NCCL moves device memory only; gloo works on the host.
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Collective: the sum of `tensor` (any shape) over all ranks, on its device."""
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Collective: the largest value of each element over all ranks, on the tensor's device."""
    return _all_reduce(tensor, dist.ReduceOp.MAX)


def _all_reduce(tensor: torch.Tensor, operation: Any) -> torch.Tensor:
    if dist.get_world_size() == 1:  # on a GPU three operations and a wait for nothing
        return tensor.clone()
    wire = _on_wire(tensor.clone())
    dist.all_reduce(wire, op=operation)
    return wire.to(tensor.device)


def broadcast_json(value: Any) -> Any:
    """Collective: rank 0's `value` (anything JSON can hold) on every rank. No pickle."""
    encoded = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    size = int(all_reduce_max(torch.tensor([len(encoded)])).item())
    wire = torch.zeros(size, dtype=torch.uint8)
    if encoded:
        wire[:] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    wire = _on_wire(wire)
    dist.broadcast(wire, src=0)
    return json.loads(bytes(wire.cpu().numpy()).decode())


class AgreedFlag:
    """A yes that any rank may raise and that all ranks see at the same step.

    One integer is reduced a step, between hosts, and read one step later, so that no step waits.
    """

    def __init__(self) -> None:
        """Collective: where devices talk by NCCL, hosts get a gloo group of their own."""
        self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def agreed(self, raised: bool) -> bool:
        """Collective: offer this step's flag and learn whether any rank raised the last step's."""
        answer = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([int(raised)], dtype=torch.int32)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (flag, work)
        return answer
