"""`sparsebert prune`, in one process or in torchrun's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from pydantic import ValidationError

from bert.folders.prune import prune_folder
from bert.folders.pruned_output import PruneReport
from distributed.errors import BadInput
from distributed.world import detect_topology, ensure_process_group
from sparsity.schedule import SparsityConfig


def prune_once(
    source: Path,
    output: Path,
    *,
    sparsity: float,
    scope: Literal["global", "per_tensor"],
    pattern: str,
    match: Sequence[str],
) -> PruneReport | None:
    """Collective: prune a folder; the report in the first process, None in the others.

    Raises:
        BadInput: in the first process; the others leave with the same exit code and no words. In
            each process that cannot join the others.
    """
    topology = detect_topology(use_gpu=False)
    ensure_process_group(topology)
    try:
        config = _build_config(sparsity, scope, pattern)
        report = prune_folder(
            source, output, config, match=match, rank=topology.rank, ranks=topology.world_size
        )
    except BadInput as error:  # on all ranks alike: one says it
        if topology.is_first:
            raise BadInput(_as_options(str(error))) from None
        raise SystemExit(2) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return report if topology.is_first else None


def _build_config(
    sparsity: float, scope: Literal["global", "per_tensor"], pattern: str
) -> SparsityConfig:
    try:
        return SparsityConfig.model_validate(
            {"schedule": "one_shot", "final_sparsity": sparsity, "scope": scope, "pattern": pattern}
        )
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        if "sparsity." in said:
            raise BadInput(said) from None
        hint = f" ({sparsity:g} % is {sparsity / 100:g})" if 1 < sparsity < 100 else ""
        raise BadInput(f"--sparsity {sparsity:g}: {said}{hint}") from None


def _as_options(said: str) -> str:
    """The same with a field's option in its place."""
    for field, option in (("final_sparsity", "--sparsity"), ("pattern", "--pattern")):
        said = said.replace(f"sparsity.{field}", option)
    return said
