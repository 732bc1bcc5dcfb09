"""Weights that a folder stores more than once: copies of one parameter, in any model.

Some writers store a tied output embedding a second time. What changes one copy must change the
others, or the model that a reader gets depends on which of them it takes.
"""

from collections.abc import Mapping
from typing import Any

import torch

from bert.architecture import canonical_name
from bert.folders.stored_encoder import TIED, explain_difference
from bert.folders.stored_weights import StoredTensor, StoredWeights
from distributed.errors import BadInput

Groups = dict[str, list[StoredTensor]]  # canonical name of a parameter -> its copies

_INPUT_NAMES = ("embed", "wte", "shared")


def group_copies(stored: StoredWeights, config: Mapping[str, Any]) -> Groups:
    """Every parameter of a folder with all tensors that are copies of it.

    Copies are tensors of one canonical name, BERT's decoder and word embeddings and, in any model
    whose embeddings are tied, equal matrices with a row for each word. `config` is config.json's.
    """
    groups: Groups = {}
    for tensor in stored.tensors:
        groups.setdefault(canonical_name(tensor.name), []).append(tensor)
    if config.get("tie_word_embeddings", True) is False:
        return groups
    for copy, original in TIED.items():
        if copy in groups and original in groups:
            groups[original] += groups.pop(copy)
    _join_equal_embeddings(groups, config.get("vocab_size"))
    return groups


def check_copies(groups: Groups, name: str) -> None:
    """Refuse a parameter whose copies differ.

    Raises:
        BadInput: naming two of them.
    """
    first, *others = groups[name]
    for other in others:
        if not are_equal(first, other):
            raise BadInput(explain_difference(first, other))


def are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return one.shape == other.shape and torch.equal(one.read().float(), other.read().float())


def _join_equal_embeddings(groups: Groups, vocab_size: object) -> None:
    """Make one parameter of equal matrices that have a row for each word."""
    names = [
        name
        for name, copies in groups.items()
        if copies[0].is_float and len(copies[0].shape) == 2 and copies[0].shape[0] == vocab_size
    ]
    # An input embedding gives the parameter its name.
    names.sort(key=lambda name: (not any(part in name for part in _INPUT_NAMES), name))
    for at, name in enumerate(names):
        for other in names[at + 1 :]:
            both = name in groups and other in groups
            if both and are_equal(groups[name][0], groups[other][0]):
                groups[name] += groups.pop(other)
