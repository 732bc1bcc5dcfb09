"""The folder that `sparsebert prune` writes: the source's files with pruned weights, and a card."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bert.architecture import is_prunable
from bert.folders.export import appears_whole
from bert.folders.keep_mask import KEEP_MASK_FILE, read_metadata, read_tensors, save_keep_masks
from bert.folders.stored_weights import StoredWeights, find_index
from bert.folders.tied_weights import Groups

_WEIGHT_SUFFIXES = {
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"
}  # fmt: skip
_CARD = "README.md"


@dataclass(frozen=True)
class PruneReport:
    """What was pruned, for the terminal and for --json. A weight stored twice counts once."""

    output: Path
    prunable: int
    pruned: int
    total: int
    threshold: float
    ties: int
    digest: str
    by_name: dict[str, int]


def write_pruned(
    stored: StoredWeights, groups: Groups, keep: dict[str, torch.Tensor], report: PruneReport
) -> None:
    """Every file of the folder, its weights with zeros where pruned, whole or not at all."""
    source = stored.folder
    masks = {
        (tensor.file, tensor.name): keep[name]
        for name, copies in groups.items()
        if name in keep
        for tensor in copies
    }
    with appears_whole(report.output) as folder:
        for file in stored.files:
            tensors = read_tensors(file)
            for name, tensor in tensors.items():
                if (kept := masks.get((file, name))) is not None:
                    tensor.masked_fill_(~kept, 0.0)
            # Without what an export says of the weights that these were.
            metadata = {k: v for k, v in read_metadata(file).items() if k == "format"}
            save_file(tensors, folder / file.name, metadata=metadata)
        # A mask for each of the encoder's weights, pruned or not: training freezes all of them.
        whole = {
            name: torch.ones(copies[0].shape, dtype=torch.bool)
            for name, copies in groups.items()
            if is_prunable(name)
        }
        save_keep_masks({**whole, **keep}, digest=report.digest, path=folder / KEEP_MASK_FILE)
        (folder / _CARD).write_text(_render_card(source, report), encoding="utf-8")
        _copy_the_rest(stored, folder)
        for written in folder.rglob("*"):
            # safetensors makes files that only their owner may read.
            if written.is_file():
                shutil.copymode(folder / _CARD, written)


def _copy_the_rest(stored: StoredWeights, folder: Path) -> None:
    """What else the source holds, but for the same weights in another form."""
    source = stored.folder
    for other in source.iterdir():
        if not other.is_file() or other in stored.files or other.name == KEEP_MASK_FILE:
            continue
        is_card = other.name == _CARD or other.name.startswith("README.source.")
        name = other.name.replace("README.", "README.source.", 1) if is_card else other.name
        if not _holds_weights(other, source):
            shutil.copyfile(other, folder / name)
    for part in _find_modules(source):
        shutil.copytree(source / part, folder / part)


def _find_modules(source: Path) -> list[str]:
    """Folders of a sentence-transformers model that stand beside its transformer."""
    try:
        modules = json.loads((source / "modules.json").read_bytes())
        paths = [str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    # The transformer's own path is "", the folder itself.
    return [path for path in paths if path and path == Path(path).name and (source / path).is_dir()]


def _holds_weights(file: Path, source: Path) -> bool:
    """Whether it is, or is about, the same weights in another form: those are not pruned."""
    if file.name.endswith(".index.json"):
        return file != find_index(source)
    return any(suffix in _WEIGHT_SUFFIXES for suffix in file.suffixes)


def _render_card(source: Path, report: PruneReport) -> str:
    """The model card; the source's own, which speaks of other weights, is README.source.md."""
    return (
        f"# {report.output.name}\n\n"
        f"The weights of `{source.name}`, pruned once by magnitude with `sparsebert prune` and not "
        f"trained since.\n\n"
        "| over | weights | pruned | sparsity |\n|---|---|---|---|\n"
        f"| the prunable weights | {report.prunable:,} | {report.pruned:,} "
        f"| {report.pruned / report.prunable:.4%} |\n"
        f"| all stored weights | {report.total:,} | {report.pruned:,} "
        f"| {report.pruned / report.total:.4%} |\n\n"
        f"Threshold {report.threshold:.6g}, mask digest `{report.digest}`; "
        f"`{KEEP_MASK_FILE}` says which weights are alive.\n"
    )
