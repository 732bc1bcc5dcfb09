"""The few collectives that the project issues itself. DeepSpeed issues its own."""

import json
from typing import Any

import torch
import torch.distributed as dist


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
