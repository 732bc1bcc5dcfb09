"""`sparsebert finetune`: one run for each seed, then their scores together.

Under --local all seeds share this process; else each has a Ray Train run of its own.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
from rich.table import Table

from launch.driver import is_under_torchrun, run
from launch.finetune_configuration import FinetuneConfig
from launch.finetune_results import read_results
from launch.local import process_group
from launch.progress import make_console
from launch.run_folder import run_folder_of


def finetune(config: FinetuneConfig, *, local: bool = False, show: bool = True) -> int:
    """Run every seed, or continue; the exit code: the first that is not 0 ends it.

    Args:
        config: with absolute paths.
        local: train in this process, without Ray.
        show: print the table of scores.

    Raises:
        BadInput: one sentence on what to change.
    """
    local = local or is_under_torchrun()
    with process_group(config.launch) if local else nullcontext():
        for seed in config.seeds:
            code = run(config.for_seed(seed), local=local)
            if code:
                return code
    if show:
        make_console().print(build_table(config, collect_results(config)))
    return 0


def collect_results(config: FinetuneConfig) -> list[dict[str, Any]]:
    """The results of all seeds that have any."""
    found = (read_results(run_folder_of(config.for_seed(seed))) for seed in config.seeds)
    return [results for results in found if results is not None]


def build_table(config: FinetuneConfig, results: Iterable[Mapping[str, Any]]) -> Table:
    """A row a seed and their mean; what was skipped, cut or mended stands below."""
    results = list(results)
    table = Table(title=f"{config.name} from {config.model.init_from}")
    for heading in ("seed", "best step"):
        table.add_column(heading, justify="right")
    columns = [(s, m) for s in ("dev", "test") for m in config.task.metrics if results[0].get(s)]
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
    ]
    table.caption = "\n".join(notes) or "nothing was skipped, cut or mended"
    return table
