"""The run's figures: metrics.jsonl and TensorBoard, one record a log step, written by rank 0.

Losses are summed on the device and reduced over the ranks when a record is written, so that
ordinary steps never wait for the host.
"""

import contextlib
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distributed.files import append_whole
from distributed.world import Topology, all_reduce_sum
from training.sinks import DENSITIES, Board

if TYPE_CHECKING:
    from sparsity.controller import SparsityController

log = logging.getLogger(__name__)

# Dense bf16 matrix peak, FLOP/s, from the vendors' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class MetricsFiles:
    """Where rank 0 writes."""

    jsonl: Path
    tensorboard: Path


class Metrics:
    """Collects figures between two records, reduces and writes them."""

    def __init__(
        self,
        files: MetricsFiles,
        *,
        topology: Topology,
        start_step: int,
        flops_per_token: float,
        config_text: str,
        digests: Mapping[str, str | None],
        matrix_titles: Mapping[str, str],
        on_record: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Open the log.

        Args:
            files: written by rank 0 only; the lines after `start_step` are already cut off.
            topology: of this process.
            start_step: finished steps; TensorBoard discards what a dead attempt logged beyond.
            flops_per_token: forward and backward, for the utilisation figure.
            config_text: the resolved configuration, shown in TensorBoard.
            digests: of what the run was made from, by name, shown there too.
            matrix_titles: what its heat map calls the matrices of a layer.
            on_record: called with each record, on the rank that writes it, before it does.
        """
        self.latest: dict[str, Any] = {}
        self._topology = topology
        self._flops_per_token = flops_per_token
        self._sums: dict[str, torch.Tensor] = {}
        self._record: dict[str, Any] = {}
        self._notes: dict[str, Any] = {}
        self._unwritten = b""
        self._steps, self._tokens, self._seconds = 0, 0, 0.0
        self._recorded_step = start_step
        self._step_started = 0.0
        self._jsonl = files.jsonl
        self._on_record = on_record
        self._open_board = partial(
            Board,
            files.tensorboard,
            config_text=config_text,
            digests=digests,
            matrix_titles=matrix_titles,
        )
        self._board = self._open_board(start_step=start_step) if topology.is_first else None

    @property
    def has_record(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._record)

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a rank's share of a step's figure (scalar); written as the mean over steps."""
        value = value.double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def begin_step(self) -> None:
        """Start the step's clock: throughput leaves out validation and checkpoints."""
        self._step_started = time.perf_counter()

    def end_step(self, tokens: int) -> None:
        """One step of `tokens` tokens, over all ranks, is done."""
        self._seconds += time.perf_counter() - self._step_started
        self._steps += 1
        self._tokens += tokens

    def record(self, figures: Mapping[str, Any]) -> None:
        """Add figures that all ranks know alike to the next record."""
        self._record.update(figures)

    def note(self, figures: Mapping[str, Any]) -> None:
        """Add figures of this process to the next record, whenever that is due."""
        self._notes.update(figures)

    def flush(self, step: int, sparsity: "SparsityController | None") -> None:
        """Collective: write one record for `step` and begin the next."""
        names = sorted(self._sums)
        if names and self._steps:
            sums = all_reduce_sum(torch.stack([self._sums[name] for name in names]))
            means = (sums / self._steps).tolist()
            self._record.update(zip(names, means, strict=True))
        self._record.update({**self._notes, **self._throughput()})
        self._notes = {}
        if sparsity is not None:
            self._record.update(sparsity.metrics())
            if sparsity.state.last_update_step >= self._recorded_step:
                self._record.update(sparsity.update_metrics())
                self._record[DENSITIES] = sparsity.densities()
        self._recorded_step = step
        self.latest = {"step": step, **_as_json(self._record)}
        if self._topology.is_first:
            self._on_record(self.latest)
            self._unwritten += json.dumps(self.latest, allow_nan=False).encode() + b"\n"
            try:
                append_whole(self._jsonl, self._unwritten)
                self._unwritten = b""
                self._write_to_board(step)
            except OSError as error:  # a full disk: training and its checkpoints matter more
                log.error("the figures of step %d are not written yet: %s", step, error)
        self._sums, self._record = {}, {}
        self._steps, self._tokens, self._seconds = 0, 0, 0.0

    def _write_to_board(self, step: int) -> None:
        board = self._board or self._open_board(start_step=step - 1)
        self._board = None  # after an error its thread is dead: the next record opens another file
        board.write(self.latest, step)
        self._board = board

    def close(self) -> None:
        """Flush TensorBoard's files."""
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()

    def _throughput(self) -> dict[str, float]:
        device = self._topology.device
        figures = {"memory/peak_gib": _peak_memory_bytes(device) / 2**30}
        if self._steps:
            per_second = self._tokens / self._seconds
            figures["throughput/tokens_per_second"] = per_second
            figures["throughput/step_seconds"] = self._seconds / self._steps
            if (peak := _peak_flops(device)) is not None:
                achieved = per_second * self._flops_per_token / self._topology.world_size
                figures["throughput/model_flops_utilisation"] = achieved / peak
        return figures


def _as_json(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same with null for NaN and infinities, which JSON has no words for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def _peak_memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for chip, peak in _PEAK_FLOPS.items() if chip in name), None)
