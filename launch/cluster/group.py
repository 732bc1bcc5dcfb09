"""The workers' process group, where Ray Train starts them: who is who, and where they meet.

Ray Train's own way (`TorchConfig`) imports torch in its controller, which needs none, and in a
worker before the training function begins. Its exceptions there end Ray's run (2.60) and leave the
workers. Here the group is joined in the training function: a failure is one of a worker, and Ray
Train replaces the group.
"""

import os
import socket
from typing import Any


def build_backend_config() -> Any:
    """An object for a trainer's `backend_config`: workers that start without a process group."""
    from ray.train.backend import Backend, BackendConfig

    class Workers(Backend):  # type: ignore[misc]  # Ray has no types
        # A worker's GPU is the one of its local rank, as under torchrun.
        share_cuda_visible_devices = True

    class Config(BackendConfig):  # type: ignore[misc]  # Ray has no types
        @property
        def backend_cls(self) -> type:
            return Workers

    return Config()


def set_ranks() -> None:
    """Set what torchrun sets of who this process is, in a worker of Ray Train."""
    import ray.train

    context = ray.train.get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }


def set_meeting_place() -> None:
    """Collective: set what torchrun sets of where the group meets, in a worker of Ray Train.

    Called just before the group is joined: the port that rank 0 chooses is free now, and may be
    another program's in a few seconds.
    """
    import ray.util
    from ray.train.collective import broadcast_from_rank_zero

    here = None
    if os.environ["RANK"] == "0":
        address = ray.util.get_node_ip_address()
        here = address, _free_port(address)
    address, port = broadcast_from_rank_zero(here)
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    # As Ray's TorchConfig sets it: a collective that fails ends its process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
