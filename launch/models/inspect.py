"""What is in a checkpoint, recomputed from its files: no process group, no GPU, no training code.

What is in a Hugging Face folder stands in inspect_folder.py.

The manifest says what the run believed; sparsity, digest and zeros here come from the stored masks
and masters, and any disagreement between the two is reported as a problem.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bert.folders.model_files import is_run
from bert.folders.stored_weights import describe_other_folder
from distributed.checkpoint.manifest import MANIFEST, BadCheckpoint
from distributed.checkpoint.reading import MASK, MASTER, Checkpoint, list_steps, step_folder
from distributed.errors import BadInput
from distributed.hashing import hex_digest
from launch.models.inspect_folder import (
    MaskCount,
    count_mask,
    describe_folder,
    is_model_folder,
    render_folder,
    render_weights,
)
from launch.models.saved_state import SavedState, SparsityPart, read_state
from launch.progress import validation_losses
from training.folder import RunFolder, read_metrics


def describe(path: Path) -> dict[str, Any]:
    """Everything worth knowing about a run (its newest good checkpoint), a checkpoint or a folder.

    Returns:
        JSON.

    Raises:
        BadInput: `path` is none of these, or has no good checkpoint.
    """
    checkpoints = None
    if is_run(path):
        checkpoints, checkpoint = _list_checkpoints(RunFolder(path))
    elif (path / MANIFEST).is_file():
        checkpoint = Checkpoint(path)
    elif is_model_folder(path):
        return describe_folder(path)
    else:
        if other := describe_other_folder(path):
            raise BadInput(other)
        what = f"has no checkpoints and no {MANIFEST}" if path.exists() else "does not exist"
        raise BadInput(f"{path} {what}: give a run, a checkpoint or a Hugging Face folder")
    report = _describe_checkpoint(checkpoint, checkpoint.path.absolute().parent.parent)
    if checkpoints is not None:
        report = {**report, "kind": "run", "path": str(path), "checkpoints": checkpoints}
    return report


def count_masks(checkpoint: Checkpoint) -> tuple[dict[str, MaskCount], str | None]:
    """Counts by parameter and the digest, from the mask files; no digest without masks."""
    if MASK not in checkpoint.kinds:
        return {}, None
    read_mask, read_master = checkpoint.reader(MASK), checkpoint.reader(MASTER)
    counts, digest = {}, 0
    for name, numel in checkpoint.numels.items():
        try:
            keep = read_mask(name, 0, numel)
        except KeyError:  # not prunable
            continue
        counts[name], share = count_mask(name, keep, zero=read_master(name, 0, numel) == 0)
        digest += share
    return counts, hex_digest(digest)


def find_problems(
    state: SavedState, counts: Mapping[str, MaskCount], digest: str | None
) -> list[str]:
    """Where the manifest and the files disagree, and pruned weights that are not zero."""
    believed = state.sparsity or SparsityPart()
    problems = []
    if believed.digest not in (None, digest):
        problems.append(
            f"the manifest's mask digest is {believed.digest}, that of the mask files {digest}"
        )
    for name, pruned in believed.pruned.items():
        found = counts[name].pruned if name in counts else 0
        if pruned != found:
            problems.append(f"{name} has {found} pruned weights, the manifest says {pruned}")
    if not believed.pending:
        problems += [
            f"{count.pruned_not_zero} pruned weights of {name} are not zero"
            for name, count in counts.items()
            if count.pruned_not_zero
        ]
    return problems


def validation_at(run: Path, state: SavedState, step: int) -> dict[str, float]:
    """The last validation losses up to `step`, from the run's metrics file, else the manifest's."""
    losses = validation_losses(state.metrics)
    for record in read_metrics(RunFolder(run).metrics_file):
        if record.get("step", 0) <= step:
            losses = validation_losses(record) or losses
    return losses


def _list_checkpoints(run: RunFolder) -> tuple[list[dict[str, Any]], Checkpoint]:
    """Every checkpoint of a run, good or not, oldest first, and the newest good one."""
    newest: Checkpoint | None = None
    entries: list[dict[str, Any]] = []
    for step in list_steps(run.checkpoints):
        folder = step_folder(run.checkpoints, step)
        reason = None
        try:
            newest, size = Checkpoint(folder), _bytes(folder)
        except (BadCheckpoint, FileNotFoundError) as error:
            if not folder.exists():  # the run, training on, has just removed it
                continue
            reason, size = str(error), _bytes(folder)
        entries.append(
            {
                "step": step,
                "path": str(folder),
                "bytes": size,
                "good": reason is None,
                "reason": reason,
            }
        )
    if newest is not None:
        return entries, newest
    reason = f"no good checkpoint ({entries[-1]['reason']})" if entries else "no checkpoint yet"
    raise BadInput(f"the run {run.path} has {reason}: let it train further or choose another")


def _describe_checkpoint(checkpoint: Checkpoint, run: Path) -> dict[str, Any]:
    state = read_state(checkpoint)
    counts, digest = count_masks(checkpoint)
    return {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        "checkpoint": str(checkpoint.path),
        "name": state.config.name or run.name,
        "step": checkpoint.step,
        "total_steps": state.config.train.total_steps,
        "optimizer_steps": checkpoint.optimizer_steps,
        "tokens_seen": state.train.tokens_seen,
        "skipped_steps": state.train.skipped_steps,
        "world_size": checkpoint.manifest.world_size,
        "zero_stage": state.config.zero.stage if state.zero_stage is None else state.zero_stage,
        "precision": state.config.train.precision,
        "parameters": sum(checkpoint.numels.values()),
        "bytes": _bytes(checkpoint.path),
        "stored": checkpoint.kinds,
        "validation": validation_at(run, state, checkpoint.step),
        "sparsity": _sparsity_report(state, checkpoint, counts=counts, digest=digest),
        "problems": find_problems(state, counts, digest),
        "versions": state.versions,
        "config": checkpoint.section("config"),
    }


def _sparsity_report(
    state: SavedState,
    checkpoint: Checkpoint,
    *,
    counts: Mapping[str, MaskCount],
    digest: str | None,
) -> dict[str, Any] | None:
    if digest is None:
        return None
    believed = state.sparsity or SparsityPart()
    prunable = sum(count.numel for count in counts.values())
    pruned = sum(count.pruned for count in counts.values())
    return {
        "prunable": prunable,
        "pruned": pruned,
        "over_prunable": pruned / prunable,
        "over_all": pruned / sum(checkpoint.numels.values()),
        "digest": digest,
        "target": believed.target,
        "threshold": believed.threshold,
        "last_update_step": believed.last_update_step,
        "pending": believed.pending,
        "by_parameter": {name: asdict(count) for name, count in counts.items()},
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def render(report: Mapping[str, Any]) -> RenderableType:
    """The report for people."""
    if report["kind"] == "folder":
        return render_folder(report)
    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(report).items():
        facts.add_row(Text(key, style="bold"), Text(value))
    parts: list[RenderableType] = [facts]
    if report["sparsity"] is not None:
        parts += [Text(), *render_weights(report["sparsity"]["by_parameter"])]
    if "checkpoints" in report:
        parts += [Text(), _render_checkpoints(report["checkpoints"])]
    parts += [Text(f"problem: {problem}", style="bold red") for problem in report["problems"]]
    return Group(*parts)


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    sparsity, config = report["sparsity"], report["config"]
    total = f" of {report['total_steps']:,}" if report["total_steps"] is not None else ""
    facts = {
        "run": str(report["name"]),
        "checkpoint": f"{report['checkpoint']} ({report['bytes'] / 2**20:,.1f} MiB)",
        "step": f"{report['step']:,}{total}",
        "tokens seen": _count(report["tokens_seen"]),
        "skipped steps": _count(report["skipped_steps"]),
        "written by": f"{report['world_size']} ranks, "
        f"ZeRO stage {_or_unknown(report['zero_stage'])}, {_or_unknown(report['precision'])}",
        "weights": f"{report['parameters']:,}",
    }
    if sparsity is None:
        facts["sparsity"] = "dense: no masks"
    else:
        facts |= {
            "sparsity": f"{sparsity['over_prunable']:.4%} of {sparsity['prunable']:,} prunable "
            f"weights, {sparsity['over_all']:.4%} of all",
            "mask digest": f"{sparsity['digest']} (recomputed from the masks)",
        }
    for name, loss in report["validation"].items():
        facts[f"validation {name}"] = f"{loss:.4f} nats a masked token"
    for section in ("model", "data", "train", "zero", "sparsity"):
        if isinstance(config.get(section), dict):
            pairs = (f"{key} {value}" for key, value in config[section].items())
            facts[f"config {section}"] = ", ".join(pairs)
    return facts


def _count(value: Any) -> str:
    return "unknown" if value is None else f"{value:,}"


def _or_unknown(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _render_checkpoints(checkpoints: list[dict[str, Any]]) -> Table:
    table = Table("step", "MiB", "state", title="Checkpoints")
    for entry in checkpoints:
        state = "good" if entry["good"] else f"damaged: {entry['reason']}"
        table.add_row(f"{entry['step']:,}", f"{entry['bytes'] / 2**20:,.1f}", Text(state))
    return table
