"""`sparsebert finetune`: one run for each seed, then their scores together.

Under --local all seeds share this process; else each has a Ray Train run of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
from rich.table import Table

from bert.tasks.finetune import Finetuning
from bert.tasks.finetune_config import FinetuneConfig
from bert.tasks.scores import read_results
from distributed.launcher import is_under_torchrun
from launch.local import process_group
from launch.progress import make_console
from launch.run import run
from training.folder import run_folder_of


def finetune(
    config: FinetuneConfig,
    *,
    local: bool = False,
    tell: Callable[[list[dict[str, Any]]], None] | None = None,
) -> int:
    """Run every seed, or continue; the exit code: the first that is not 0 ends it.

    Args:
        config: with absolute paths.
        local: train in this process, without Ray.
        tell: called in the end with the results of all seeds, by the first of torchrun's processes
            alone; prints their table if it is None.

    Raises:
        BadInput: one sentence on what to change.
    """
    local = local or is_under_torchrun()
    with process_group(config.launch) if local else nullcontext() as group:
        for seed in config.seeds:
            code = run(Finetuning(config.for_seed(seed)), local=local)
            if code:
                return code
    if group is None or group[0].is_first:
        found = (read_results(run_folder_of(config.for_seed(seed))) for seed in config.seeds)
        results = [one for one in found if one is not None]
        if tell is not None:
            tell(results)
        else:
            make_console().print(build_table(config, results))
    return 0


def build_table(config: FinetuneConfig, results: Iterable[Mapping[str, Any]]) -> Table:
    """A row a seed and their mean; what was skipped, cut or mended stands below."""
    results = list(results)
    table = Table(title=f"{config.name} from {config.model.init_from}")
    for heading in ("seed", "best step"):
        table.add_column(heading, justify="right")
    splits = [split for split in ("dev", "test") if all(one.get(split) for one in results)]
    columns = [(split, metric) for split in splits for metric in config.task.metrics]
    for split, metric in columns:
        table.add_column(f"{split} {metric}", justify="right")
    for one in results:
        scores = [f"{one[split][metric]:.4f}" for split, metric in columns]
        table.add_row(str(one["seed"]), str(one["best_step"]), *scores)
    means = [float(np.mean([one[split][metric] for one in results])) for split, metric in columns]
    table.add_row("mean", "", *(f"{mean:.4f}" for mean in means), style="bold")
    notes = [
        f"{split}: {count:,} {reason}"
        for split, reports in results[0]["reports"].items()
        for reason, count in reports.items()
    ] or ["nothing was skipped, cut or mended"]
    # Results of earlier versions have no warnings.
    notes += [f"warning: {warning}" for warning in results[0].get("warnings", ())]
    table.caption = "\n".join(notes)
    return table
