"""Who this process is among all, and on which device it computes."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# While rank 0 checks a run's data and checkpoints, the others wait. NCCL's own default is 10 min.
_TIMEOUT = timedelta(minutes=30)


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
    """Read the variables that torchrun and Ray Train set; one process on its own has none."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Topology(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        device=device,
    )


def ensure_process_group(topology: Topology, init_method: str | None = None) -> None:
    """Collective: join the process group unless the launcher (Ray Train) has done so already."""
    if dist.is_initialized():
        return
    backend = "nccl" if topology.device.type == "cuda" else "gloo"
    if topology.world_size == 1 and init_method is None and "MASTER_ADDR" not in os.environ:
        # One process on its own needs no address and no port.
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch's stubs lack it
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)
        return
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=_TIMEOUT,
    )


def has_gpu_for_each_process() -> bool:
    """Whether this machine has a GPU for each of the processes that torchrun started on it."""
    return torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
