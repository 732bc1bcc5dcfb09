"""A study's results -> one table (Markdown, CSV, JSON) and one plot.

A row is a model on a task at one rate: mean and 95 % interval of the test score (Student's t over
seeds), recovery (its mean over its twin's at the twin's own rate), and what the model keeps.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from distributed.files import write_atomically
from launch.study.plan import StudyConfig, StudyRun

_COLUMNS = (
    "task", "metric", "model", "learning_rate", "rate_of", "seeds", "mean", "interval95",
    "recovery", "dev_mean", "kept_of_prunable", "kept_of_all", "scores",
)  # fmt: skip


def build_rows(
    study: StudyConfig,
    chosen: Mapping[str, Mapping[str, float]],
    results: Mapping[StudyRun, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """One row a model, task and rate, scores in percent (correlations times 100)."""
    rows = [_row(study, chosen, run, found) for run, found in results.items()]
    own = {(r["task"], r["model"]): r["mean"] for r in rows if r["model"] in r["rate_of"]}
    for row in rows:
        twin = study.models[row["model"]].twin
        base = own.get((row["task"], twin)) if twin is not None else None
        row["recovery"] = row["mean"] / base if base else None
    return rows


def compute_interval(scores: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean; None for one score."""
    if len(scores) < 2:
        return None
    spread = float(np.std(scores, ddof=1)) / np.sqrt(len(scores))
    return float(stats.t.ppf(0.975, len(scores) - 1) * spread)


def _row(
    study: StudyConfig,
    chosen: Mapping[str, Mapping[str, float]],
    run: StudyRun,
    found: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    metric = found[0]["main_metric"]
    # Without a test split there is only dev, and the column says so.
    split = "test" if found[0]["test"] is not None else "dev"
    scores = [100 * float(one[split][metric]) for one in found]
    sparsity = found[0]["sparsity"]
    candidates = [run.model, study.models[run.model].twin]
    rate_of = [m for m in candidates if m and chosen[run.task][m] == run.learning_rate]
    return {
        "task": run.task,
        "metric": f"{split} {metric}",
        "model": run.model,
        "learning_rate": run.learning_rate,
        "rate_of": rate_of,
        "seeds": list(run.seeds),
        "mean": float(np.mean(scores)),
        "interval95": compute_interval(scores),
        "recovery": None,
        "dev_mean": 100 * float(np.mean([one["dev"][metric] for one in found])),
        "kept_of_prunable": 1 - sparsity["over_prunable"],
        "kept_of_all": sparsity["parameters_kept"] / sparsity["parameters"],
        "scores": scores,
    }


def write_report(
    study: StudyConfig, rows: Sequence[Mapping[str, Any]], *, missing: int = 0
) -> list[Path]:
    """Write the tables and, with matplotlib, the plot; the files written.

    `missing`: runs that are not finished yet, which the table says.
    """
    note = f"\n{missing} runs of this study are not finished.\n" if missing else ""
    files = {
        "table.md": render_markdown(study, rows) + note,
        "table.csv": _render_csv(rows),
        "table.json": json.dumps({"study": study.name, "rows": rows}, indent=1) + "\n",
    }
    for name, text in files.items():
        write_atomically(study.folder / name, text.encode())
    written = [study.folder / name for name in files]
    if (plot := _plot(study, rows)) is not None:
        written.append(plot)
    return written


def render_markdown(study: StudyConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; published scores stand below it, apart from ours."""
    lines = [
        "| task | metric | model | learning rate | mean of seeds | 95 % | recovery |"
        " kept of prunable | kept of all |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        interval = "" if row["interval95"] is None else f"± {row['interval95']:.2f}"
        recovery = "" if row["recovery"] is None else f"{row['recovery']:.1%}"
        whose = " and ".join("own" if m == row["model"] else f"{m}'s" for m in row["rate_of"])
        lines.append(
            f"| {row['task']} | {row['metric']} | {row['model']} | "
            f"{row['learning_rate']:g} ({whose}) | {row['mean']:.2f} ({len(row['seeds'])}) | "
            f"{interval} | {recovery} | {row['kept_of_prunable']:.1%} | {row['kept_of_all']:.1%} |"
        )
    published = [
        f"* {task}: {who} {score:g}"
        for task, entry in study.tasks.items()
        for who, score in entry.published.items()
    ]
    if published:
        lines += ["", "Published scores, of other models on the full data, not measured here:", ""]
        lines += published
    return "\n".join(lines) + "\n"


def _render_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        lists = {key: " ".join(map(str, row[key])) for key in ("rate_of", "seeds", "scores")}
        writer.writerow({**row, **lists})
    return out.getvalue()


def _plot(study: StudyConfig, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Scores by task, a bar a model at its own rate; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    own = {(r["task"], r["model"]): r for r in rows if r["model"] in r["rate_of"]}
    tasks, models = list(study.tasks), list(study.models)
    figure = Figure(figsize=(2 + 1.6 * len(tasks), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(models)
    for at, model in enumerate(models):
        found = [own.get((task, model)) for task in tasks]
        axes.bar(
            np.arange(len(tasks)) + (at - (len(models) - 1) / 2) * width,
            [row["mean"] if row else np.nan for row in found],
            width,
            yerr=[(row["interval95"] or 0.0) if row else 0.0 for row in found],
            label=model,
            capsize=2,
        )
    axes.set_xticks(range(len(tasks)), tasks, rotation=20)
    axes.set_ylabel("score (%), mean and 95 % interval over seeds")
    axes.legend(ncols=2, fontsize="small")
    file = study.folder / "scores.png"
    figure.savefig(file, dpi=110)
    return file
