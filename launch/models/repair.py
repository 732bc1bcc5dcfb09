"""Compare two checkpoints, and put a run's checkpoint folder in order."""

from pathlib import Path
from typing import Any

import torch

from bert.folders.model_files import find_model, is_run
from distributed.checkpoint.fencing import remove_unfinished
from distributed.checkpoint.reading import MASK, Checkpoint, find_newest
from distributed.checkpoint.retention import set_aside
from distributed.errors import BadInput
from training.folder import RunFolder
from training.session import hold_run

# Steps of wall time and paths differ between two runs that are the same.
_COMPARED_STATE = ("train", "sparsity", "identity")


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Where two checkpoints differ, whatever world size and stage wrote them; JSON.

    Args:
        one: a run (its newest good checkpoint) or a checkpoint.
        other: the same.

    Raises:
        BadInput: one of them cannot be read.
    """
    checkpoints = a, b = _find_checkpoint(one), _find_checkpoint(other)
    differences: list[str] = []
    if a.step != b.step:
        differences.append(f"step: {a.step} and {b.step}")
    if a.optimizer_steps != b.optimizer_steps:
        differences.append(f"optimizer steps: {a.optimizer_steps} and {b.optimizer_steps}")
    for key in _COMPARED_STATE:
        if a.state.get(key) != b.state.get(key):
            differences.append(f"{key}: {_first_difference(a.section(key), b.section(key))}")
    for name in sorted(a.numels.keys() | b.numels.keys()):
        if a.numels.get(name) != b.numels.get(name):
            differences.append(
                f"{name}: {a.numels.get(name, 'no')} and {b.numels.get(name, 'no')} weights"
            )
    for kind in sorted({*a.kinds} | {*b.kinds}):
        if kind not in a.kinds or kind not in b.kinds:
            differences.append(f"{kind}: only in {(b if kind in b.kinds else a).path}")
        else:
            differences += _compare_kind(a, b, kind)
    return {
        "checkpoints": [str(checkpoint.path) for checkpoint in checkpoints],
        "steps": [a.step, b.step],
        "equal": not differences,
        "differences": differences,
    }


def repair(run: Path) -> dict[str, Any]:
    """Find a run's newest good checkpoint and move what is damaged after it out of sight; JSON.

    Nothing good is touched: damaged checkpoints are renamed to `.refused-step-...` and unfinished
    parts, which no run can ever use, are removed.

    Raises:
        BadInput: `run` is no run, is being trained, or has no good checkpoint.
    """
    if not is_run(run):
        raise BadInput(f"{run} is no run folder: give one to --repair")
    folder = RunFolder(run)
    with hold_run(folder):
        newest, refused = find_newest(folder.checkpoints)
        if newest is None:
            reason = f"none is good ({refused[0]})" if refused else "there is none"
            raise BadInput(f"{folder.checkpoints} has no checkpoint to go back to: {reason}")
        remove_unfinished(folder.checkpoints)
        moved = set_aside(folder.checkpoints, newer_than=newest.step)
    return {
        "newest": str(newest.path),
        "step": newest.step,
        "refused": refused,
        "moved": [str(path) for path in moved],
    }


def _find_checkpoint(path: Path) -> Checkpoint:
    model = find_model(path)
    if not isinstance(model, Checkpoint):
        raise BadInput(f"{path} is a Hugging Face folder: give a run or a checkpoint to --compare")
    return model


def _compare_kind(a: Checkpoint, b: Checkpoint, kind: str) -> list[str]:
    found = []
    for name in sorted(a.numels.keys() & b.numels.keys()):
        if a.numels[name] != b.numels[name]:
            continue
        try:
            left, right = (c.reader(kind)(name, 0, c.numels[name]) for c in (a, b))
        except KeyError:  # a mask of a parameter that one of them does not prune
            if kind == MASK and a.holds(kind, name) == b.holds(kind, name):
                continue
            found.append(f"{kind} of {name}: only in one of them")
            continue
        # Bits, not values: +0.0 and -0.0 differ, and a NaN equals itself.
        bits = [x.view(torch.int32) if x.dtype == torch.float32 else x for x in (left, right)]
        differ = bits[0] != bits[1]
        if count := int(differ.sum()):
            line = f"{kind} of {name}: {count} of {left.numel()} differ"
            if left.dtype == torch.float32:
                line += f", by at most {float((left - right)[differ].abs().max()):.3g}"
            found.append(line)
    return found


def _first_difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    for key in {**a, **b}:
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict) and left != right:
            return _first_difference(left, right, f"{prefix}{key}.")
        if left != right:
            return f"{prefix}{key} {left} and {right}"
    return "equal"
