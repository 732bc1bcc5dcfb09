"""What is in a Hugging Face folder: an export of ours, or anybody's model.

Sparsity is counted in the stored masks or, without a mask file, in the zeros. What keeps a run from
starting there is listed, not refused.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bert.architecture import LAYER_MATRICES, is_prunable
from bert.config import ModelConfig
from bert.folders.config import (
    CONFIG_FILE,
    build_model_config,
    check_not_quantised,
    find_other_model,
    read_bert_config,
    read_config,
)
from bert.folders.keep_mask import KEEP_MASK_FILE, load_keep_masks
from bert.folders.model_files import compute_fingerprint
from bert.folders.source import LEAST_PRUNED_SHARE, encoder_shapes, is_needed
from bert.folders.stored_encoder import ENCODER, check_encoder, find_strangers
from bert.folders.stored_weights import WEIGHTS_FILE, StoredWeights, find_index, open_weights
from bert.folders.tied_weights import Groups, check_copies, group_copies
from bert.folders.tokenizer import has_tokenizer, load_folder_vocabulary
from bert.vocabulary import VOCAB_FILE, Vocabulary, vocabulary_file
from distributed.errors import BadInput
from distributed.hashing import hex_digest, name_hash, position_hash

T = TypeVar("T")

_LAYER_WEIGHT = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class MaskCount:
    """One prunable parameter, counted in its mask and its weights."""

    numel: int
    pruned: int
    sparsity: float
    zeros: int  # of the weights: at least the pruned ones, once the mask is enforced
    pruned_not_zero: int


def count_mask(name: str, keep: torch.Tensor, *, zero: torch.Tensor) -> tuple[MaskCount, int]:
    """The counts of a parameter, and its share of the digest.

    Args:
        name: its canonical name.
        keep: bool, flat, True = keep.
        zero: bool, flat: which of its weights are 0.
    """
    index = (~keep).nonzero().view(-1)
    count = MaskCount(
        numel=keep.numel(),
        pruned=index.numel(),
        sparsity=index.numel() / keep.numel(),
        zeros=int(zero.sum()),
        pruned_not_zero=int((~zero[index]).sum()),
    )
    return count, int(position_hash(name_hash(name), index).sum())


def is_model_folder(path: Path) -> bool:
    """Whether `path` looks like a Hugging Face folder."""
    names = (CONFIG_FILE, WEIGHTS_FILE)
    return any((path / name).is_file() for name in names) or find_index(path) is not None


def describe_folder(folder: Path) -> dict[str, Any]:
    """Everything worth knowing about a Hugging Face folder; JSON.

    Raises:
        BadInput: it has no safetensors, or they are damaged.
    """
    stored = open_weights(folder)
    found = _Found()
    config = _attempt(lambda: read_config(folder), found.notes) or {}
    other = find_other_model(config) if config else f"no {CONFIG_FILE}"
    groups = group_copies(stored, config)
    if other is None:
        _look_at_bert(stored, config, found)
    else:
        _attempt(lambda: check_not_quantised(config, folder / CONFIG_FILE), found.problems)
        found.notes.append(f"it is not BERT ({other}): no run starts from it")
    by_type: Counter[str] = Counter()
    for tensor in stored.tensors:
        by_type[tensor.dtype] += tensor.numel
    sparsity = _count_sparsity(folder, groups, is_bert=other is None, problems=found.problems)
    vocabulary, model = found.vocabulary, found.model
    return {
        "kind": "folder",
        "path": str(folder),
        "files": [file.name for file in stored.files],
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "model_type": config.get("model_type"),
        "architectures": config.get("architectures"),
        "dimensions": model.for_identity() if model is not None else None,
        "words": vocabulary.size if vocabulary is not None else None,
        "tokenizer": vocabulary.record() if vocabulary is not None else None,
        "parameters": sum(copies[0].numel for copies in groups.values()),
        "stored": dict(by_type),
        "fingerprint": compute_fingerprint(stored),
        "sparsity": sparsity,
        "tied": _compare_copies(groups, found.problems),
        "heads": [n for n in groups if other is None and not n.startswith(ENCODER)],
        "unknown": found.unknown,
        "notes": found.notes,
        "problems": found.problems,
    }


@dataclass
class _Found:
    """What was found about a folder on the way."""

    notes: list[str] = field(default_factory=list)  # why no run starts from it as it is
    problems: list[str] = field(default_factory=list)  # what is wrong with it
    unknown: list[str] = field(default_factory=list)
    vocabulary: Vocabulary | None = None
    model: ModelConfig | None = None


def _attempt(check: Callable[[], T], said: list[str]) -> T | None:
    """What `check` returns; None if it refuses, and what it says is noted."""
    try:
        return check()
    except BadInput as error:
        said.append(str(error))
        return None


def _look_at_bert(stored: StoredWeights, config: dict[str, Any], found: _Found) -> None:
    """Tokenizer, dimensions and tensors of a BERT."""
    folder = stored.folder
    _attempt(lambda: read_bert_config(folder), found.problems)
    if has_tokenizer(folder):
        found.vocabulary = _attempt(lambda: load_folder_vocabulary(folder), found.problems)
    else:
        found.notes.append(f"it has no {VOCAB_FILE}: a run needs model.vocab")
    words = found.vocabulary.size if found.vocabulary is not None else None
    model = found.model = _attempt(
        lambda: build_model_config(
            config, folder=folder, vocab=vocabulary_file(folder), words=words
        ),
        found.problems,
    )
    if model is None:
        return
    rows = model.vocab_rows or words or 0
    shapes = encoder_shapes(model, rows=rows)
    if words is not None and rows < words:
        found.problems.append(f"it has {words} words and {rows} rows of word embeddings")
    _attempt(lambda: check_encoder(stored, shapes, is_needed=is_needed), found.problems)
    found.unknown = [tensor.name for tensor in find_strangers(stored, shapes)]


def _compare_copies(groups: Groups, problems: list[str]) -> list[dict[str, Any]]:
    """The weights that are stored more than once."""
    tied = []
    for name, copies in groups.items():
        if len(copies) == 1:
            continue
        before = len(problems)
        _attempt(partial(check_copies, groups, name), problems)
        names = [tensor.name for tensor in copies]
        tied.append({"parameter": name, "stored": names, "equal": len(problems) == before})
    return tied


def _count_sparsity(
    folder: Path, groups: Groups, *, is_bert: bool, problems: list[str]
) -> dict[str, Any] | None:
    """Counts in the stored masks, or else in the zeros of what can be pruned."""
    masks: dict[str, torch.Tensor] = {}
    digest_said = None
    mask_file = folder / KEEP_MASK_FILE
    if mask_file.is_file():
        masks, digest_said = load_keep_masks(mask_file)
    counts, digest = {}, 0
    for name, copies in groups.items():
        tensor = copies[0]
        counted = is_prunable(name) if is_bert else len(tensor.shape) > 1
        if not tensor.is_float or not (name in masks or (counted and not masks)):
            continue
        zero = tensor.read().view(-1) == 0
        keep = masks[name].view(-1) if name in masks else ~zero
        if keep.shape != zero.shape:
            problems.append(f"{mask_file} has another shape for {name} than its weights")
            continue
        counts[name], share = count_mask(name, keep, zero=zero)
        digest += share
    problems += [f"{mask_file} names {n}, which is no weight" for n in masks if n not in groups]
    problems += [
        f"{count.pruned_not_zero} pruned weights of {name} are not zero"
        for name, count in counts.items()
        if count.pruned_not_zero
    ]
    if not counts:
        return None
    if masks and digest_said not in (None, hex_digest(digest)):
        problems.append(f"{mask_file} says the digest is {digest_said}, and it is another")
    prunable = sum(count.numel for count in counts.values())
    pruned = sum(count.pruned for count in counts.values())
    is_mask = bool(masks) or pruned >= LEAST_PRUNED_SHARE * prunable
    return {
        "from": KEEP_MASK_FILE if masks else "zeros",
        "prunable": prunable,
        "pruned": pruned,
        "over_prunable": pruned / prunable,
        "over_all": pruned / sum(copies[0].numel for copies in groups.values()),
        "digest": hex_digest(digest) if is_mask and (is_bert or masks) else None,
        "by_parameter": {name: asdict(count) for name, count in counts.items()},
    }


def render_folder(report: Mapping[str, Any]) -> RenderableType:
    """The report for people."""
    facts = Table.grid(padding=(0, 2))
    for key, value in _facts(report).items():
        facts.add_row(Text(key, style="bold"), Text(value))
    parts: list[RenderableType] = [facts]
    if report["sparsity"] is not None:
        parts += [Text(), *render_weights(report["sparsity"]["by_parameter"])]
    parts += [Text(f"note: {note}") for note in report["notes"]]
    parts += [Text(f"problem: {problem}", style="bold red") for problem in report["problems"]]
    return Group(*parts)


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    sparsity = report["sparsity"]
    classes = ", ".join(map(str, report["architectures"] or ["unknown class"]))
    facts = {
        "folder": f"{report['path']} ({report['bytes'] / 2**20:,.1f} MiB)",
        "model": f"{classes}, model_type {report['model_type'] or 'not given'}",
        "weights": f"{report['parameters']:,}, stored as "
        + ", ".join(f"{count:,} {kind}" for kind, count in report["stored"].items()),
        "fingerprint": report["fingerprint"],
    }
    if report["dimensions"] is not None:
        pairs = (f"{key} {value}" for key, value in report["dimensions"].items())
        facts["dimensions"] = ", ".join(pairs)
    if report["tokenizer"] is not None:
        settings = {"lower_case": report["tokenizer"]["lower_case"]}
        settings |= report["tokenizer"]["settings"]
        pairs = (f"{key} {json.dumps(value)}" for key, value in settings.items())
        facts["tokenizer"] = f"{report['words']:,} words, {', '.join(pairs)}"
    if sparsity is not None:
        facts["sparsity"] = (
            f"{sparsity['over_prunable']:.4%} of {sparsity['prunable']:,} prunable weights, "
            f"{sparsity['over_all']:.4%} of all (counted in {sparsity['from']})"
        )
        if sparsity["digest"] is not None:
            facts["mask digest"] = f"{sparsity['digest']} (recomputed)"
    for tied in report["tied"]:
        relation = "stored as" if tied["equal"] else "differs as"
        facts[f"tied {tied['parameter']}"] = f"{relation} {', '.join(tied['stored'])}"
    for kind in ("heads", "unknown"):
        if report[kind]:
            facts[kind] = ", ".join(report[kind])
    return facts


def render_weights(by_parameter: Mapping[str, Mapping[str, Any]]) -> list[RenderableType]:
    """A row a layer and a column a matrix of it; other parameters have their own table."""
    layers: dict[int, dict[str, Mapping[str, Any]]] = {}
    others = Table("parameter", "weights", "sparsity", title="Sparsity by parameter")
    for name, count in by_parameter.items():
        if found := _LAYER_WEIGHT.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = count
        else:
            others.add_row(name, f"{count['numel']:,}", f"{count['sparsity']:.2%}")
    tables: list[RenderableType] = []
    if layers:
        parts = list(dict.fromkeys(part for layer in layers.values() for part in layer))
        table = Table(
            "layer", *(LAYER_MATRICES.get(p, p) for p in parts), "all", title="Sparsity by layer"
        )
        for layer, weights in sorted(layers.items()):
            share = sum(w["pruned"] for w in weights.values()) / sum(
                w["numel"] for w in weights.values()
            )
            cells = [f"{weights[p]['sparsity']:.2%}" if p in weights else "" for p in parts]
            table.add_row(str(layer), *cells, f"{share:.2%}")
        tables.append(table)
    return [*tables, others] if others.row_count else tables
