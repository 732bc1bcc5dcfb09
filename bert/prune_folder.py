"""Prunes a Hugging Face folder once: the same exact threshold, without training.

Any number of processes share the work: each reads and ranks its slice of every prunable weight, and
only counts travel. The result does not depend on how many there are.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bert.export import WEIGHTS_FILE, appears_whole
from bert.keep_mask import (
    KEEP_MASK_FILE,
    load_keep_masks,
    read_metadata,
    read_tensors,
    save_keep_masks,
)
from bert.weights import canonical_name, is_prunable
from distributed.collectives import all_reduce_sum
from distributed.errors import BadInput
from distributed.hashing import hex_digest
from distributed.partition import Fragment
from sparsity.masks import FragmentMask
from sparsity.pattern_name import PatternName
from sparsity.pruning import count_pruned, update_masks
from sparsity.schedule import SparsityConfig
from sparsity.targets import build_scopes

_WEIGHT_SUFFIXES = {
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_INDEX_FILE = "model.safetensors.index.json"
_CARD = "README.md"
_BYTE = 8  # masks are packed eight weights a byte: ranks' slices begin at whole bytes


@dataclass(frozen=True)
class PruneReport:
    """What was pruned, for the terminal and for --json."""

    output: Path
    prunable: int
    pruned: int
    total: int
    threshold: float
    ties: int
    digest: str
    by_name: dict[str, int]


def prune_folder(
    source: Path,
    output: Path,
    config: SparsityConfig,
    *,
    match: Sequence[str] = (),
    rank: int,
    ranks: int,
) -> PruneReport:
    """Collective: write `source` with its smallest weights set to zero as the folder `output`.

    Args:
        source: holds model.safetensors, whole or in shards with an index.
        output: a folder that does not exist yet; what else `source` holds is copied into it,
            but for the model card, which is written anew.
        config: scope, groups, pattern and final_sparsity; its schedule is not read.
        match: shell patterns of the names of what to prune; none takes the six linear weights of
            every BERT encoder layer.
        rank: of this process.
        ranks: how many share the work.

    Raises:
        BadInput: on all ranks alike, naming what to change.
    """
    if output.exists():
        raise BadInput(f"{output} exists already: choose another folder")
    files = _find_files(source)
    shapes, file_of, weights = _read_shapes(files)
    prunable = [n for n in weights if _is_chosen(n, match)]
    if not prunable:
        raise BadInput(
            f"{source} has no weights that --match names: they are like "
            f"{max(weights, key=lambda name: len(shapes[name]), default='nothing')}"
            if match
            else f"{source} has no BERT encoder layer: name what to prune with --match PATTERN"
        )
    chosen = {name: shapes[name] for name in prunable}
    scopes = build_scopes(config, prunable, chosen)
    masters, before = {}, _load_masks(source, chosen)
    for slot, name in enumerate(prunable):
        start, stop = _slice(math.prod(chosen[name]), rank, ranks)
        if start < stop:
            fragment = Fragment(name, start, stop - start, slot, 0, start, stop)
            mask = FragmentMask(fragment, torch.device("cpu"))
            if before:
                mask.load(before[name].view(-1)[start:stop])
            masters[mask] = _read_range(*file_of[name], start, stop, chosen[name])
    _check_finite(source, prunable, masters)
    owned = {mask: mask.owned_digest() for mask in masters}
    earlier = count_pruned(prunable, owned, all_reduce_sum)
    wanted = []
    for scope in scopes:
        have = sum(earlier.by_name[name] for name in scope.names)
        count = scope.pruned_count(config, config.last_update_step or 0)
        if have > count:
            raise BadInput(f"{source} is sparser than that already: {have:,} weights are pruned")
        wanted.append(count - have)
    update = update_masks(
        PatternName.parse(config.pattern),
        masters,
        chosen,
        scopes,
        wanted,
        rank=rank,
        ranks=ranks,
        all_reduce=all_reduce_sum,
    )
    by_name = {n: earlier.by_name[n] + update.newly.by_name[n] for n in prunable}
    digest = hex_digest(earlier.digest + update.newly.digest)
    keep = _gather_masks(masters, chosen)
    report = PruneReport(
        output=output,
        prunable=sum(math.prod(shape) for shape in chosen.values()),
        pruned=sum(by_name.values()),
        total=sum(math.prod(shape) for shape in shapes.values()),
        threshold=update.threshold,
        ties=update.ties,
        digest=digest,
        by_name=by_name,
    )
    if rank == 0:
        _write(source, files, keep, report)
    return report


def _find_index(source: Path) -> Path | None:
    """The index of a model in several files; transformers reads the one file where both are."""
    index = source / _INDEX_FILE
    return index if index.is_file() and not (source / WEIGHTS_FILE).is_file() else None


def _find_files(source: Path) -> list[Path]:
    if not source.is_dir():
        raise BadInput(f"{source} is not a folder: give a Hugging Face folder with safetensors")
    index = _find_index(source)
    if index is not None:
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index} is damaged: copy it again") from None
        if any(Path(str(name)).name != name for name in names):
            raise BadInput(f"{index} names files outside its folder: copy it again")
    else:
        names = [WEIGHTS_FILE]
    files = [source / name for name in names]
    for file in files:
        if not file.is_file():
            raise BadInput(f"{file} does not exist: give a Hugging Face folder with safetensors")
    return files


def _read_shapes(
    files: Sequence[Path],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[Path, str]], list[str]]:
    """Shapes, and (file, name there), of every tensor by canonical name; those with weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    weights = []
    file_of: dict[str, tuple[Path, str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    canonical, tensor = canonical_name(name), tensors.get_slice(name)
                    if canonical in shapes:
                        raise BadInput(f"{file} has {name}, and {canonical} again: keep one")
                    shapes[canonical] = tuple(tensor.get_shape())
                    file_of[canonical] = (file, name)
                    if tensor.get_dtype() in _FLOATS and shapes[canonical]:
                        weights.append(canonical)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{file} is damaged ({error}): copy it again") from None
    return shapes, file_of, weights


def _is_chosen(name: str, match: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in match) if match else is_prunable(name)


def _load_masks(source: Path, chosen: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Masks of an earlier pruning, which goes on from there."""
    if not (source / KEEP_MASK_FILE).is_file():
        return {}
    masks, _ = load_keep_masks(source / KEEP_MASK_FILE)
    for name in masks.keys() ^ chosen.keys():
        raise BadInput(f"{source / KEEP_MASK_FILE} and --match do not agree about {name}")
    return masks


def _check_finite(
    source: Path, names: Sequence[str], masters: dict[FragmentMask, torch.Tensor]
) -> None:
    """Collective: refuse, naming it, a tensor with a weight that is infinite or NaN."""
    wrong = torch.zeros(len(names), dtype=torch.int64)
    for mask, master in masters.items():
        wrong[names.index(mask.fragment.name)] += (~master.isfinite()).sum()
    for name, count in zip(names, all_reduce_sum(wrong).tolist(), strict=True):
        if count:
            raise BadInput(f"{source}: {count:,} weights of {name} are infinite or NaN")


def _slice(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    share = -(-numel // (ranks * _BYTE)) * _BYTE
    return min(rank * share, numel), min((rank + 1) * share, numel)


def _read_range(
    file: Path, name: str, start: int, stop: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Flattened weights [start, stop) as fp32; only the rows that hold them are read."""
    row = math.prod(shape[1:])
    first, last = start // row, -(-stop // row)
    with safe_open(file, framework="pt") as tensors:
        rows: torch.Tensor = tensors.get_slice(name)[first:last].float()
    return rows.reshape(-1)[start - first * row : stop - first * row].clone()


def _gather_masks(
    masters: dict[FragmentMask, torch.Tensor], shapes: dict[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Collective: whole masks (bool, True = keep), a bit a weight on the wire."""
    keep = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        packed = torch.zeros(-(-numel // _BYTE), dtype=torch.uint8)
        for mask in masters:
            if mask.fragment.name == name:
                at = mask.fragment.start // _BYTE
                mine = mask.pack()
                packed[at : at + mine.numel()] = mine
        bits = np.unpackbits(all_reduce_sum(packed).numpy(), count=numel)
        keep[name] = torch.from_numpy(bits.astype(bool)).view(shape)
    return keep


def _write(
    source: Path, files: Sequence[Path], keep: dict[str, torch.Tensor], report: PruneReport
) -> None:
    """Every file of the folder, its weights with zeros where pruned, whole or not at all."""
    with appears_whole(report.output) as folder:
        for file in files:
            tensors = read_tensors(file)
            for name, tensor in tensors.items():
                if (kept := keep.get(canonical_name(name))) is not None:
                    tensor.masked_fill_(~kept, 0.0)
            # Without what an export says of the weights that these were.
            metadata = {k: v for k, v in read_metadata(file).items() if k == "format"}
            save_file(tensors, folder / file.name, metadata=metadata)
        save_keep_masks(keep, digest=report.digest, path=folder / KEEP_MASK_FILE)
        (folder / _CARD).write_text(_render_card(source, report), encoding="utf-8")
        for other in source.iterdir():
            is_written = other in files or (folder / other.name).exists()
            if other.is_file() and not is_written and not _holds_weights(other, source):
                shutil.copyfile(other, folder / other.name)
        for written in folder.iterdir():
            # safetensors makes files that only their owner may read.
            shutil.copymode(folder / _CARD, written)


def _holds_weights(file: Path, source: Path) -> bool:
    """Whether it is, or is about, the same weights in another form: those are not pruned."""
    if file.name.endswith(".index.json"):
        return file != _find_index(source)
    return any(suffix in _WEIGHT_SUFFIXES for suffix in file.suffixes)


def _render_card(source: Path, report: PruneReport) -> str:
    """The model card; the source's own speaks of other weights."""
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
