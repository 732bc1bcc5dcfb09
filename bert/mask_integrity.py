"""Whether a run's masks are still what it believes: counted and hashed again at each checkpoint."""

import numpy as np
import torch

from distributed.collectives import all_reduce_sum
from distributed.errors import Unrecoverable
from distributed.hashing import hex_digest, name_hash, position_hash
from sparsity.controller import SparsityController
from sparsity.masks import sum_modulo_2_64


def check_masks(sparsity: SparsityController) -> None:
    """Collective: zeros against masks, and masks against the counts and the digest of the state.

    Raises:
        Unrecoverable: on all ranks, naming a parameter whose weights or mask are not as they must.
    """
    if (name := sparsity.find_violation()) is not None:
        raise Unrecoverable(f"a pruned weight of {name} is not zero: the masks are not enforced")
    names = list(sparsity.state.pruned)
    row = {name: i for i, name in enumerate(names)}
    counts = [0] * len(names)
    digests = []
    for f, packed in sparsity.packed_masks().items():
        owned = f.owned_stop - f.owned_start
        keep = np.unpackbits(packed.numpy(), count=owned)
        pruned = torch.from_numpy(np.flatnonzero(keep == 0))
        counts[row[f.name]] += pruned.numel()
        digests.append(int(position_hash(name_hash(f.name), pruned + f.owned_start).sum()))
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
