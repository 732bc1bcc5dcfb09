"""Where each ZeRO stage keeps a weight: the only file that knows.

DeepSpeed flattens parameters, cuts the result between ranks and keeps an fp32 master of each cut. A
`Fragment` is the piece of one parameter that lies in this rank's masters; everything that works on
sharded weights (pruning, checkpoints) works on fragments and never gathers one.

    stage 0      every rank holds every master whole; each owns (counts, saves) an equal share
    stage 1, 2   a parameter group is one flat buffer, cut in equal pieces, so a boundary falls
                 anywhere
    stage 3      each parameter is cut on its own; a sub-group's master is the pieces end to end,
                 with uninitialised padding after the short ones

Positions come from the storage offsets of the low-precision views: DeepSpeed's own `_hp_mapping` is
wrong under `round_robin_gradients` (measured with 0.19.8). Tensors are looked up at each use and
never kept, because DeepSpeed replaces them when it moves its states.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distributed.errors import BadInput
from distributed.fragment import Fragment
from distributed.support import check_supported, parameter_groups

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]
ReadRange = Callable[[str, int, int], torch.Tensor]  # (name, start, length) -> fp32 [length]


class Partition:
    """This rank's fragments of a DeepSpeed engine's fp32 masters, and access to what lies there."""

    def __init__(self, engine: Any, named_parameters: NamedParameters) -> None:
        """Find the fragments of an engine that DeepSpeed has just initialised.

        Args:
            engine: DeepSpeed's.
            named_parameters: name and parameter of every trained weight, tied ones once.

        Raises:
            BadInput: naming the setting, if DeepSpeed keeps masters where this does not look, or
                the parameter that the optimizer does not hold.
        """
        check_supported(engine)
        held = {id(p) for group in parameter_groups(engine) for p in group}
        for name, parameter in named_parameters:
            if id(parameter) not in held and 0 not in full_shape(parameter):
                raise BadInput(f"{name} is in no parameter group of the optimizer: add it to one")
        self._engine = engine
        self._base: torch.optim.Optimizer = engine.basic_optimizer
        self._parameters = dict(named_parameters)
        self.rank: int = engine.global_rank
        self.world_size: int = engine.dp_world_size
        self.shapes = {name: full_shape(p) for name, p in named_parameters}
        self.numels = {name: math.prod(shape) for name, shape in self.shapes.items()}
        wrapper = type(engine.optimizer).__name__
        layouts = {
            "DeepSpeedZeroOptimizer": self._flat_fragments,
            "BF16_Optimizer": self._flat_fragments,
            "DeepSpeedZeroOptimizer_Stage3": self._stage3_fragments,
            "FP16_UnfusedOptimizer": self._replica_fragments,
            type(self._base).__name__: self._replica_fragments,
        }
        self._wrapper = wrapper
        self.fragments: tuple[Fragment, ...] = tuple(layouts[wrapper]())

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds all masters (stage 0)."""
        return self._wrapper not in (
            "DeepSpeedZeroOptimizer",
            "BF16_Optimizer",
            "DeepSpeedZeroOptimizer_Stage3",
        )

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters and gradients live on the host while the model does not."""
        optimizer = self._engine.optimizer
        return bool(getattr(optimizer, "cpu_offload", False)) or bool(
            getattr(optimizer, "offload_optimizer", False)
        )

    @property
    def is_mid_step(self) -> bool:
        """Whether some of a step's batches are accumulated already, and some are to come."""
        done: int = self._engine.micro_steps
        return done % int(self._engine.gradient_accumulation_steps()) != 0

    @property
    def gradients_reach_norm(self) -> bool:
        """Whether a change to `gradients()` also changes the clip norm that DeepSpeed computes."""
        return not self.offloads_optimizer and self._wrapper != "BF16_Optimizer"

    # The four layouts.

    def _replica_fragments(self) -> list[Fragment]:
        fragments = []
        for slot, (name, numel) in enumerate(self.numels.items()):
            share = -(-numel // self.world_size)
            start, stop = (min(r * share, numel) for r in (self.rank, self.rank + 1))
            if numel:
                fragments.append(Fragment(name, 0, numel, slot, 0, start, stop))
        return fragments

    def _flat_fragments(self) -> list[Fragment]:
        fragments = []
        names = {id(p): name for name, p in self._parameters.items()}
        for slot, group in enumerate(parameter_groups(self._engine)):
            flat = self._low_precision_flat(slot)
            size = self.masters()[slot].numel()
            for parameter in group:
                name = names.get(id(parameter))
                if name is None:  # of another module, such as the loss's
                    continue
                at = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
                first = max(at, self.rank * size)
                last = min(at + self.numels[name], (self.rank + 1) * size)
                if first < last:
                    offset = first - self.rank * size
                    fragments.append(_whole(name, first - at, last - first, slot, offset))
        return fragments

    def _stage3_fragments(self) -> list[Fragment]:
        fragments = []
        names = {id(p): name for name, p in self._parameters.items()}
        for slot, group in enumerate(parameter_groups(self._engine)):
            offset = 0
            for parameter in group:
                share = parameter.partition_numel()
                start = self.rank * share
                length = min(max(parameter.ds_numel - start, 0), share)
                name = names.get(id(parameter))
                if length and name is not None:
                    fragments.append(_whole(name, start, length, slot, offset))
                offset += share
        return fragments

    # What lies in the fragments. All are live 1-D views, of `fragment.length` elements.

    def masters(self) -> list[torch.Tensor]:
        """The fp32 tensors that the optimizer updates, by slot; shapes as the stage keeps them."""
        if self.is_replicated:
            return self._replica_masters()
        # Not the optimizer's param_groups: DeepSpeed rewrites those around each step.
        kept_in = {
            "DeepSpeedZeroOptimizer": "single_partition_of_fp32_groups",
            "BF16_Optimizer": "fp32_groups_flat_partition",
            "DeepSpeedZeroOptimizer_Stage3": "fp32_partitioned_groups_flat",
        }
        return list(getattr(self._engine.optimizer, kept_in[self._wrapper]))

    def _replica_masters(self) -> list[torch.Tensor]:
        if self._wrapper != "FP16_UnfusedOptimizer":
            return list(self._parameters.values())
        optimizer = self._engine.optimizer
        master_of = {
            id(low): master
            for lows, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            for low, master in zip(lows, masters, strict=True)
        }
        return [master_of[id(p)] for p in self._parameters.values()]

    def _low_precision_flat(self, slot: int) -> torch.Tensor:
        optimizer = self._engine.optimizer
        flat: list[torch.Tensor] = (
            optimizer.bf16_groups_flat
            if self._wrapper == "BF16_Optimizer"
            else optimizer.bit16_groups_flat
        )
        return flat[slot]

    def master(self, fragment: Fragment) -> torch.Tensor:
        """The fragment's fp32 weights."""
        flat = self.masters()[fragment.slot].detach().view(-1)
        return flat.narrow(0, fragment.offset, fragment.length)

    def weight(self, fragment: Fragment) -> torch.Tensor:
        """The fragment's weights as the next forward reads them, in the model's precision."""
        if self._wrapper == "DeepSpeedZeroOptimizer_Stage3":
            parameter: Any = self._parameters[fragment.name]
            if parameter.ds_persist and parameter.data.numel() == parameter.ds_numel:
                # Small parameters stay whole beside their partition, and the forward reads that.
                whole: torch.Tensor = parameter.data
                return whole.view(-1).narrow(0, fragment.start, fragment.length)
            part: torch.Tensor = parameter.ds_tensor
            return part.view(-1)[: fragment.length]
        if self.is_replicated:
            return self._parameters[fragment.name].detach().view(-1)
        flat = self._low_precision_flat(fragment.slot)
        at = self.rank * self.masters()[fragment.slot].numel() + fragment.offset
        return flat.view(-1).narrow(0, at, fragment.length)

    def gradients(self, fragments: Sequence[Fragment]) -> list[torch.Tensor | None]:
        """Averaged gradients after the last backward and before the step, in any precision.

        Only where `gradients_reach_norm`. None for a parameter that the loss did not reach.
        """
        if self.is_replicated:
            grads = [self._parameters[f.name].grad for f in fragments]
            return [None if g is None else g.detach().view(-1) for g in grads]
        optimizer = self._engine.optimizer
        pieces: dict[int, dict[int, torch.Tensor]] = {}
        for slot, grads in optimizer.averaged_gradients.items():
            offset = 0
            pieces[slot] = {}
            for grad in grads or ():
                pieces[slot][offset] = grad.view(-1)
                offset += grad.numel()
        return [pieces[f.slot][f.offset][: f.length] for f in fragments]

    # Optimizer state (Adam's moments), kept by torch under the master tensor.

    def moments(self, fragment: Fragment) -> dict[str, torch.Tensor]:
        """Views of the optimizer's per-weight state; empty before its first step."""
        master = self.masters()[fragment.slot]
        return {
            key: value.detach().view(-1).narrow(0, fragment.offset, fragment.length)
            for key, value in sorted(self._base.state.get(master, {}).items())
            if torch.is_tensor(value) and value.shape == master.shape and master.dim() > 0
        }

    def optimizer_steps(self) -> int:
        """How many updates the optimizer has applied (Adam's t)."""
        for master in self.masters():
            if "step" in self._base.state.get(master, {}):
                return int(self._base.state[master]["step"])
        return 0

    def write_masters(self, read: ReadRange) -> None:
        """Set every fp32 master from `read`: DeepSpeed starts from weights rounded to bf16."""
        for fragment in self.fragments:
            self.master(fragment).copy_(read(fragment.name, fragment.start, fragment.length))

    def write_moments(self, read: Mapping[str, ReadRange], steps: int) -> None:
        """Set the optimizer's state; with no step done, forget what `initialize` may have left."""
        self._base.state.clear()
        if steps == 0:
            return
        on_device = any(group.get("fused") for group in self._base.param_groups)
        for master in self.masters():
            device = master.device if on_device else torch.device("cpu")
            state = self._base.state[master]
            state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=device)
            state.update({key: torch.zeros_like(master) for key in sorted(read)})
        for fragment in self.fragments:
            for key, view in self.moments(fragment).items():
                view.copy_(read[key](fragment.name, fragment.start, fragment.length))

    def refresh_replicas(self) -> None:
        """Stage 0: set the weights that the forward reads from their masters.

        DeepSpeed's `initialize` may take an update there (weight decay with no gradient) that only
        the masters see until the first step.
        """
        if self.is_replicated:
            for fragment in self.fragments:
                self.weight(fragment).copy_(self.master(fragment))


def _whole(name: str, start: int, length: int, slot: int, offset: int) -> Fragment:
    """A fragment that no other rank holds."""
    return Fragment(name, start, length, slot, offset, start, start + length)


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The parameter's shape on all ranks together."""
    # Stage 3 leaves an empty tensor in place of the parameter and keeps its shape beside it.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
