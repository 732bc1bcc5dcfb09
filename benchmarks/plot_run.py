"""Draw a run's sparsity and losses from its metrics.jsonl: the picture in the README.

python benchmarks/plot_run.py docs/demo.png runs/demo-general runs/demo-pubmed
"""

import sys
from pathlib import Path

import matplotlib

from training.folder import RunFolder, read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(output: Path, runs: list[Path]) -> None:
    figure, rows = plt.subplots(2, len(runs), figsize=(5.2 * len(runs), 5.2), sharex="col")
    for column, run in enumerate(runs):
        records = read_metrics(RunFolder(run).metrics_file)
        steps = [r["step"] for r in records]
        upper, lower = (row[column] if len(runs) > 1 else row for row in rows)
        upper.plot(steps, [r["sparsity/actual"] for r in records], color="tab:green")
        upper.set(title=run.name, ylabel="sparsity of prunable weights", ylim=(-0.02, 1))
        lower.plot(steps, [r["train/mlm_loss"] for r in records], color="0.75", label="training")
        for name, colour in (("general", "tab:blue"), ("pubmed", "tab:red")):
            seen = [r for r in records if f"validation/{name}/mlm_loss" in r]
            at = [r["step"] for r in seen]
            key = f"validation/{name}"
            lower.plot(at, [r[f"{key}/mlm_loss"] for r in seen], "o-", color=colour, label=name)
            lower.axhline(
                seen[-1][f"{key}/unigram_loss"], color=colour, ls=":", label=f"{name} unigram"
            )
        lower.set(xlabel="step", ylabel="MLM loss, nats", ylim=(5, 10.5))
        lower.legend(fontsize=8, ncol=2)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
