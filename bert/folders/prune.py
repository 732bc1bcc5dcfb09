"""Prunes a Hugging Face folder once: the same exact threshold, without training.

Any number of processes share the work: each reads and ranks its slice of every prunable weight, and
only counts travel. The result does not depend on how many there are.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert.architecture import canonical_name, is_prunable, layer_shapes
from bert.folders.config import CONFIG_FILE, check_not_quantised
from bert.folders.keep_mask import KEEP_MASK_FILE, load_keep_masks
from bert.folders.pruned_output import PruneReport, write_pruned
from bert.folders.stored_encoder import (
    advise,
    check_float,
    check_parameters,
    explain_missing,
    find_layers,
    refuse_strangers,
)
from bert.folders.stored_weights import StoredTensor, StoredWeights, open_weights, read_json
from bert.folders.tied_weights import check_copies, group_copies
from distributed.errors import BadInput
from distributed.fragment import Fragment
from distributed.hashing import hex_digest
from distributed.world import all_reduce_sum
from sparsity.patterns.name import PatternName
from sparsity.pruning import AllReduce, count_pruned, update_masks
from sparsity.schedule import SparsityConfig
from sparsity.selection.masks import FragmentMask
from sparsity.targets import build_scopes

# Types that hold counts and positions, and no weights that were quantised.
_NO_WEIGHTS = ("I64", "BOOL")
# The parameters of BERT beside its layers: here of any shape.
_AROUND = (
    *(f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
    *(f"embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")),
    *(f"pooler.dense.{kind}" for kind in ("weight", "bias")),
)
_BYTE = 8  # masks are packed eight weights a byte: ranks' slices begin at whole bytes


def prune_folder(
    source: Path,
    output: Path,
    config: SparsityConfig,
    *,
    match: Sequence[str] = (),
    rank: int = 0,
    ranks: int = 1,
) -> PruneReport:
    """Collective: write `source` with its smallest weights set to zero as the folder `output`.

    Args:
        source: holds model.safetensors, whole or in shards with an index.
        output: a folder that does not exist yet; what else `source` holds is copied into it. Its
            model card, which speaks of other weights, becomes README.source.md.
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
    stored = open_weights(source)
    config_json = _read_config(source)
    groups = group_copies(stored, config_json)
    prunable = (
        _find_matches(stored, groups, match) if match else _find_bert(stored, groups, config_json)
    )
    chosen = {name: groups[name][0].shape for name in prunable}
    for name in prunable:
        check_copies(groups, name)
    scopes = build_scopes(config, prunable, chosen)
    masters, before = {}, _load_masks(source, chosen)
    for slot, name in enumerate(prunable):
        start, stop = _slice(math.prod(chosen[name]), rank, ranks)
        if start < stop:
            fragment = Fragment(name, start, stop - start, slot, 0, start, stop)
            mask = FragmentMask(fragment, torch.device("cpu"))
            if before:
                mask.load(before[name].view(-1)[start:stop])
            masters[mask] = _read_range(groups[name][0], start, stop)
    all_reduce: AllReduce = (
        all_reduce_sum if ranks > 1 else torch.clone
    )  # alone, without a process group
    _check_finite(source, prunable, masters, all_reduce)
    owned = {mask: mask.owned_digest() for mask in masters}
    earlier = count_pruned(prunable, owned, all_reduce)
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
        all_reduce=all_reduce,
    )
    by_name = {n: earlier.by_name[n] + update.newly.by_name[n] for n in prunable}
    digest = hex_digest(earlier.digest + update.newly.digest)
    keep = _gather_masks(masters, chosen, all_reduce)
    report = PruneReport(
        output=output,
        prunable=sum(math.prod(shape) for shape in chosen.values()),
        pruned=sum(by_name.values()),
        total=sum(copies[0].numel for copies in groups.values()),
        threshold=update.threshold,
        ties=update.ties,
        digest=digest,
        by_name=by_name,
    )
    if rank == 0:
        write_pruned(stored, groups, keep, report)
    return report


def _read_config(source: Path) -> dict[str, Any]:
    """config.json, if there is one: a quantised model is refused whatever its names are."""
    try:
        config = read_json(source / CONFIG_FILE)
    except FileNotFoundError:
        return {}
    check_not_quantised(config, source / CONFIG_FILE)
    return config


def _find_bert(
    stored: StoredWeights, groups: Mapping[str, Sequence[StoredTensor]], config: Mapping[str, Any]
) -> list[str]:
    """The six matrices of each layer: all of them, or it is not the encoder that is pruned."""
    layers, kind = config.get("num_hidden_layers"), config.get("model_type")
    found = find_layers(stored.tensors)
    is_bert = kind in (None, "bert")
    if not found or not (is_bert or any(map(is_prunable, groups))):
        raise BadInput(
            f"{stored.folder}{f' (model_type {kind})' if kind else ''} has no BERT encoder layer: "
            "name what to prune with --match PATTERN"
        )
    sizes = []
    for part in ("attention.self.query", "intermediate.dense"):
        name = f"encoder.layer.0.{part}.weight"
        if name not in groups:
            raise BadInput(explain_missing(stored, name))
        sizes.append(groups[name][0].shape[0])
    shapes = layer_shapes(
        layers if isinstance(layers, int) else found, width=sizes[0], inner=sizes[1]
    )
    check_parameters(stored, {**dict.fromkeys(_AROUND), **shapes}, is_needed=is_prunable)
    if is_bert:  # models that have BERT's layers may have more around them
        refuse_strangers(stored, {**dict.fromkeys(_AROUND), **shapes})
    return [name for name in groups if is_prunable(name)]


def _find_matches(
    stored: StoredWeights, groups: Mapping[str, Sequence[StoredTensor]], match: Sequence[str]
) -> list[str]:
    """What the patterns name, of whatever model."""
    chosen = []
    for name, copies in groups.items():
        names = {name, *(canonical_name(tensor.name) for tensor in copies)}
        is_named = any(fnmatchcase(one, pattern) for one in names for pattern in match)
        if not is_named or not copies[0].shape or copies[0].dtype in _NO_WEIGHTS:
            continue
        check_float(copies[0])
        if advice := advise(copies):
            raise BadInput(
                f"{copies[0].file} has {copies[0].name}, which is a part of a weight and not one: "
                f"{advice}"
            )
        chosen.append(name)
    if not chosen:
        like = max(groups, key=lambda name: len(groups[name][0].shape), default="nothing")
        raise BadInput(f"{stored.folder} has no weights that --match names: they are like {like}")
    return chosen


def _load_masks(source: Path, chosen: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Masks of an earlier pruning, which goes on from there."""
    if not (source / KEEP_MASK_FILE).is_file():
        return {}
    masks, _ = load_keep_masks(source / KEEP_MASK_FILE)
    masks = {name: keep for name, keep in masks.items() if name in chosen or not keep.all()}
    for name in sorted(masks.keys() ^ chosen.keys()):
        raise BadInput(f"{source / KEEP_MASK_FILE} and --match do not agree about {name}")
    return masks


def _check_finite(
    source: Path,
    names: Sequence[str],
    masters: dict[FragmentMask, torch.Tensor],
    all_reduce: AllReduce,
) -> None:
    """Collective: refuse, naming it, a tensor with a weight that is infinite or NaN."""
    wrong = torch.zeros(len(names), dtype=torch.int64)
    for mask, master in masters.items():
        wrong[names.index(mask.fragment.name)] += (~master.isfinite()).sum()
    for name, count in zip(names, all_reduce(wrong).tolist(), strict=True):
        if count:
            raise BadInput(f"{source}: {count:,} weights of {name} are infinite or NaN")


def _slice(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    share = -(-numel // (ranks * _BYTE)) * _BYTE
    return min(rank * share, numel), min((rank + 1) * share, numel)


def _read_range(tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Flattened weights [start, stop) as fp32; only the rows that hold them are read."""
    row = math.prod(tensor.shape[1:])
    first, last = start // row, -(-stop // row)
    rows = tensor.read_rows(first, last)
    return rows.reshape(-1)[start - first * row : stop - first * row].clone()


def _gather_masks(
    masters: dict[FragmentMask, torch.Tensor],
    shapes: dict[str, tuple[int, ...]],
    all_reduce: AllReduce,
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
        bits = np.unpackbits(all_reduce(packed).numpy(), count=numel)
        keep[name] = torch.from_numpy(bits.astype(bool)).view(shape)
    return keep
