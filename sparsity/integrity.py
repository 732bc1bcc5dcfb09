"""Whether a run's masks are still what it believes: counted and hashed again at each checkpoint."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from distributed.errors import Unrecoverable
from distributed.fragment import Fragment
from distributed.hashing import hex_digest, name_hash, position_hash
from distributed.world import all_reduce_sum
from sparsity.selection.masks import sum_modulo_2_64

if TYPE_CHECKING:
    from sparsity.controller import SparsityController

_CHUNK = 1 << 20


def check_masks(
    sparsity: "SparsityController", packed_masks: Mapping[Fragment, torch.Tensor]
) -> None:
    """Collective: zeros against masks, and masks against the counts and the digest of the state.

    Args:
        sparsity: of the run.
        packed_masks: its masks as they are about to be saved.

    Raises:
        Unrecoverable: on all ranks, naming a parameter whose weights or mask are not as they must.
    """
    if (name := sparsity.find_violation()) is not None:
        raise Unrecoverable(f"a pruned weight of {name} is not zero: the masks are not enforced")
    names = list(sparsity.state.pruned)
    row = {name: i for i, name in enumerate(names)}
    counts = [0] * len(names)
    digests = []
    for f, packed in packed_masks.items():
        owned = f.owned_stop - f.owned_start
        kept = torch.from_numpy(np.flatnonzero(np.unpackbits(packed.numpy(), count=owned)))
        counts[row[f.name]] += owned - kept.numel()
        # The pruned are all but the kept, which are few.
        digests += [_hash_of_all(f), -_hash_of(f.name, kept + f.owned_start)]
    *total, digest = all_reduce_sum(torch.tensor([*counts, sum_modulo_2_64(digests)])).tolist()
    for name, count in zip(names, total, strict=True):
        if count != sparsity.state.pruned[name]:
            raise Unrecoverable(
                f"the mask of {name} prunes {count} weights and not {sparsity.state.pruned[name]}: "
                "it has changed in memory"
            )
    if hex_digest(digest) != sparsity.state.digest:
        raise Unrecoverable(
            f"the masks' digest is {hex_digest(digest)} and not {sparsity.state.digest}: a mask "
            "has changed in memory"
        )


@cache
def _hash_of_all(fragment: Fragment) -> int:
    """Sum of the hashes of all positions that this rank owns: it never changes."""
    chunks = range(fragment.owned_start, fragment.owned_stop, _CHUNK)
    return sum(
        _hash_of(fragment.name, torch.arange(at, min(at + _CHUNK, fragment.owned_stop)))
        for at in chunks
    )


def _hash_of(name: str, positions: torch.Tensor) -> int:
    return int(position_hash(name_hash(name), positions).sum())
