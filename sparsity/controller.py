"""Prunes a DeepSpeed engine's masters while it trains.

An update only computes masks. They are enforced where it costs least and reaches every copy of a
weight: in the hook that torch runs right after the base optimizer has changed the fp32 masters,
before DeepSpeed refreshes the low-precision weights from them. Local, no collective, at every
stage.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from distributed.errors import BadInput
from distributed.fragment import Fragment
from distributed.hashing import hex_digest
from distributed.partition import Partition
from distributed.world import all_reduce_sum
from sparsity import schedule
from sparsity.patterns.name import PatternName
from sparsity.pruning import Counted, count_pruned, update_masks
from sparsity.schedule import SparsityConfig
from sparsity.selection.masks import FragmentMask, MaskRun, join_runs
from sparsity.state import SparsityState
from sparsity.targets import build_scopes
from sparsity.zero_parameters import check_pruned_whole

log = logging.getLogger(__name__)

ReadMask = Callable[[str, int, int], torch.Tensor]  # (name, start, length) -> bool [length]


class SparsityController:
    """Masks for the prunable parameters of one engine."""

    def __init__(
        self,
        config: SparsityConfig,
        partition: Partition,
        *,
        prunable: Sequence[str],
        optimizer: torch.optim.Optimizer,
        must_learn: Collection[str] = (),
    ) -> None:
        """Attach to `optimizer`, the one given to DeepSpeed, after `deepspeed.initialize`.

        Args:
            config: schedule and scope.
            partition: of the same engine.
            prunable: names of the parameters to prune, as the partition knows them, in a fixed
                order.
            optimizer: DeepSpeed's basic optimizer.
            must_learn: parameters that are zeros now; an update that would prune one of them whole
                is refused.
        """
        self.config = config
        self.state = SparsityState(pruned=dict.fromkeys(prunable, 0))
        self._partition = partition
        self._scopes = build_scopes(config, prunable, partition.shapes)
        self._pattern = PatternName.parse(config.pattern)
        self._masks = {
            f: FragmentMask(f, partition.master(f).device)
            for f in partition.fragments
            if f.name in self.state.pruned
        }
        self._runs: dict[int, list[MaskRun]] = {}
        for run in join_runs(self._masks.values()):
            self._runs.setdefault(run.slot, []).append(run)
        self._must_learn = frozenset(must_learn)
        self._are_loaded = False  # masks that came from elsewhere, though they may prune nothing
        self._update_seconds, self._wire_bytes = 0.0, 0
        optimizer.register_step_post_hook(self._enforce)
        if not partition.gradients_reach_norm:
            if partition.rank == 0:
                log.warning(
                    "the clip norm includes pruned weights' gradients with this zero.* setting"
                )
            optimizer.register_step_pre_hook(self._mask_master_gradients)

    @property
    def prunable_numel(self) -> int:
        """Number of prunable weights."""
        return sum(scope.numel for scope in self._scopes)

    @property
    def total_numel(self) -> int:
        """Number of all trained weights."""
        return sum(self._partition.numels.values())

    @property
    def pruned_numel(self) -> int:
        """Number of pruned weights, over all ranks."""
        return sum(self.state.pruned.values())

    def is_due(self, step: int) -> bool:
        """Whether `update` changes the masks before the batches of `step`; alike on all ranks."""
        return schedule.is_due(self.config, step)

    def update(self, step: int) -> bool:
        """Collective: called before the batches of each step; prune if the schedule says so.

        Pruned weights stay pruned. The masks take effect in the next applied optimizer step.

        Raises:
            BadInput: on all ranks, if it was not called when it had to be: training would go on
                with other masks than the schedule's, or with none.
                Or if it would prune a parameter whole that is all zero, or that must learn.
            NonFiniteWeights: on all ranks, if a prunable weight is infinite or NaN.
        """
        self._check_that_none_was_missed(step)
        if not self.is_due(step):
            return False
        started = time.perf_counter()
        counts = [s.pruned_count(self.config, step) for s in self._scopes]
        wanted = [
            max(0, k - sum(self.state.pruned[n] for n in s.names))
            for k, s in zip(counts, self._scopes, strict=True)
        ]
        self._wire_bytes = 0
        update = update_masks(
            self._pattern,
            {mask: self._partition.master(f) for f, mask in self._masks.items()},
            {name: self._partition.shapes[name] for name in self.state.pruned},
            self._scopes,
            wanted,
            rank=self._partition.rank,
            ranks=self._partition.world_size,
            all_reduce=self._counted_all_reduce,
        )
        self._add(update.newly)
        check_pruned_whole(
            self._partition, self.state.pruned, update.newly.by_name, must_learn=self._must_learn
        )
        self.state.target = sum(counts) / self.prunable_numel
        if any(wanted):
            self.state.threshold = update.threshold
            self.state.pending = True
        self.state.ties = update.ties
        self.state.churn = sum(wanted) / self.prunable_numel
        self.state.last_update_step = step
        self._update_seconds = time.perf_counter() - started
        return True

    def mask_gradients(self) -> None:
        """Zero pruned weights' gradients: out of the clip norm and of Adam's moments. Local.

        Called after the step's last backward and before its update (`attach` does). Where that
        would not reach the norm, Adam's moments are kept clean in the optimizer's hook instead.
        BF16_Optimizer's norm is of all gradients on every rank: zeroing this rank's alone would
        have each rank clip by a norm of its own.
        """
        if not self._partition.gradients_reach_norm:
            return
        masks = list(self._masks.values())
        gradients = self._partition.gradients([m.fragment for m in masks])
        for mask, gradient in zip(masks, gradients, strict=True):
            if gradient is not None:
                mask.apply(gradient)

    def after_step(self, applied: bool) -> None:
        """Say whether the optimizer step was applied: a skipped one leaves new masks pending."""
        if applied:
            self.state.pending = False

    def metrics(self) -> dict[str, float | str]:
        """Figures for the log, alike on all ranks."""
        state = self.state
        return {
            "sparsity/target": state.target,
            "sparsity/actual": self.pruned_numel / self.prunable_numel,
            "sparsity/actual_all_weights": self.pruned_numel / self.total_numel,
            "sparsity/threshold": state.threshold,  # of several scopes, the largest
            "sparsity/ties": float(state.ties),
            "sparsity/churn": state.churn,
            "sparsity/digest": state.digest,
        }

    def update_metrics(self) -> dict[str, float]:
        """What the last update cost this process: seconds, and bytes that it sent."""
        return {
            "sparsity/update_seconds": self._update_seconds,
            "sparsity/update_bytes": float(self._wire_bytes),
        }

    def densities(self) -> dict[str, float]:
        """Share of each prunable parameter's weights that is kept."""
        numels = self._partition.numels
        return {name: 1 - count / numels[name] for name, count in self.state.pruned.items()}

    def packed_masks(self) -> dict[Fragment, torch.Tensor]:
        """This rank's owned masks, eight weights a byte, for the checkpoint."""
        return {f: mask.pack() for f, mask in self._masks.items()}

    def load_masks(self, read: ReadMask, *, expected_digest: str | None) -> None:
        """Collective: take masks from a checkpoint or an export.

        Raises:
            RuntimeError: on all ranks, if the digest differs from `expected_digest`.
        """
        for f, mask in self._masks.items():
            mask.load(read(f.name, f.start, f.length))
        self._count_again()
        if expected_digest is not None and self.state.digest != expected_digest:
            raise RuntimeError(
                f"the masks' digest is {self.state.digest}, the manifest says {expected_digest}"
            )

    def resume(self, step: int) -> None:
        """Collective: go on at `step` with weights that were pruned before: their zeros are masks.

        Of a checkpoint without masks, such as DeepSpeed's own, already loaded. A live weight that
        is exactly zero is taken for a pruned one.

        Raises:
            BadInput: on all ranks, if fewer weights are zero than were pruned by then.
        """
        done = schedule.last_due_step(self.config, step - 1)
        is_frozen = self.config.schedule == "frozen"
        if done is None and not is_frozen:
            return  # pruning has not begun: a zero is a weight like another
        for f, mask in self._masks.items():
            mask.load(self._partition.master(f) != 0)
        self._count_again()
        wanted = 1 if done is None else sum(s.pruned_count(self.config, done) for s in self._scopes)
        if self.pruned_numel < wanted:
            raise BadInput(
                f"{self.pruned_numel} weights are zero, and before step {step} at least {wanted} "
                "were pruned: load the checkpoint of that step before attach"
            )
        self.state.last_update_step = -1 if done is None else done

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state (`SparsityState` as a dictionary)."""
        self.state = SparsityState(**{**state, "pruned": self.state.pruned})

    def find_violation(self) -> str | None:
        """Collective: the name of a parameter with a pruned weight that is not +0.0, or None.

        Each rank looks at the masters and the low-precision weights of its own part. Masks that
        are still pending (`state.pending`) are not enforced yet: then nothing is checked.
        """
        if self.state.pending:
            return None
        names = list(self.state.pruned)
        wrong = torch.zeros(len(names), dtype=torch.int64)
        for f, mask in self._masks.items():
            for values in (self._partition.master(f), self._partition.weight(f)):
                wrong[names.index(f.name)] += mask.count_alive(values)
        wrong = all_reduce_sum(wrong)
        return next((name for name, count in zip(names, wrong, strict=True) if count), None)

    def _check_that_none_was_missed(self, step: int) -> None:
        if self._partition.is_mid_step:
            raise BadInput(
                f"update({step}) is called between the batches of a step: call it once a step, "
                "before the first batch, with the number of steps and not of batches"
            )
        if self.config.schedule == "frozen" and not self._are_loaded:
            raise BadInput("the schedule is frozen, and no masks are there: see resume_step")
        before = schedule.last_due_step(self.config, step - 1)
        if before is not None and self.state.last_update_step < before:
            raise BadInput(
                f"update({step}) is called, and the update of step {before} never was: call it "
                "before every step; to go on with a model that was saved, see attach's resume_step"
            )

    def _count_again(self) -> None:
        """Collective: counts and digest of masks that came from elsewhere."""
        self._are_loaded = True
        owned = {mask: mask.owned_digest() for mask in self._masks.values()}
        self.state.pruned = dict.fromkeys(self.state.pruned, 0)
        self.state.digest = hex_digest(0)
        self._add(count_pruned(list(self.state.pruned), owned, all_reduce_sum))
        self.state.target = self.pruned_numel / self.prunable_numel

    def _add(self, counted: Counted) -> None:
        for name, count in counted.by_name.items():
            self.state.pruned[name] += count
        self.state.digest = hex_digest(int(self.state.digest, 16) + counted.digest)

    def _counted_all_reduce(self, counts: torch.Tensor) -> torch.Tensor:
        self._wire_bytes += counts.numel() * counts.element_size()
        return all_reduce_sum(counts)

    def _enforce(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After the optimizer changed its current masters: pruned weights back to +0.0."""
        for slot, master in self._current_masters(optimizer):
            for run in self._runs.get(slot, ()):
                run.apply(master.detach())

    def _mask_master_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before the update, where gradients cannot be reached earlier: out of Adam's moments."""
        for slot, master in self._current_masters(optimizer):
            if master.grad is not None:
                for run in self._runs.get(slot, ()):
                    run.apply(master.grad)

    def _current_masters(self, optimizer: torch.optim.Optimizer) -> list[tuple[int, torch.Tensor]]:
        # DeepSpeed steps one group or sub-group at a time: only what is in param_groups has
        # changed.
        slot_of = {id(master): slot for slot, master in enumerate(self._partition.masters())}
        current = [p for group in optimizer.param_groups for p in group["params"]]
        return [(slot_of[id(p)], p) for p in current if id(p) in slot_of]
