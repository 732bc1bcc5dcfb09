"""The last step of `make demo`: what the runs achieved, in one table, and whether it is enough.

Each stage must leave the sparse model well below a unigram predictor on held-out text of its own. A
control whose tokens see only themselves must not get there: else the figures would prove nothing.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from distributed.errors import BadInput
from training.folder import RunFolder, read_metrics

MARGIN_NATS = 0.2
EXPORT = Path("exports/demo-pubmed")
SENTENCE = "The patients were treated with [MASK] for six weeks."
# name of the run, what it is, the validation set of its own stage, and whether it must get
# MARGIN_NATS below the unigram predictor there or must not
STAGES = (
    ("demo-general", "pretrained and pruned", "general", True),
    ("demo-pubmed", "continued on PubMed, masks frozen", "pubmed", True),
    ("demo-control", "control: tokens see only themselves", "general", False),
)


@dataclass(frozen=True)
class StageResult:
    """What one run's metrics say at its last step."""

    name: str
    what: str
    steps: int
    tokens: int
    seconds: float
    last: dict[str, Any]
    own_set: str
    must_learn: bool

    def margin(self) -> float:
        """Nats below the unigram predictor on the stage's own validation text."""
        prefix = f"validation/{self.own_set}"
        return float(self.last[f"{prefix}/unigram_loss"] - self.last[f"{prefix}/mlm_loss"])

    def kept_promise(self) -> bool:
        """Whether the margin is on the right side."""
        return (self.margin() >= MARGIN_NATS) == self.must_learn


def read_stage(name: str, what: str, own_set: str, must_learn: bool) -> StageResult:
    """Sum up a run from its metrics.

    Raises:
        BadInput: the run has not been trained to the end.
    """
    folder = RunFolder(Path("runs") / name)
    records = read_metrics(folder.metrics_file)
    if not records or records[-1]["step"] < _total_steps(folder):
        raise BadInput(f"{folder.path} is not complete: run `make demo`")
    seconds, before = 0.0, 0
    for record in records:
        seconds += record.get("throughput/step_seconds", 0.0) * (record["step"] - before)
        before = record["step"]
    last = records[-1]
    return StageResult(
        name, what, last["step"], last["train/tokens_seen"], seconds, last, own_set, must_learn
    )


def _total_steps(folder: RunFolder) -> int:
    return int(yaml.safe_load(folder.config_file.read_text())["train"]["total_steps"])


def build_table(results: list[StageResult]) -> Table:
    """One row a stage."""
    table = Table(
        title="MLM loss on held-out text, nats a masked token (unigram predictor's beside)"
    )
    for heading in ("run", "steps", "tokens", "seconds", "tokens/s", "general", "PubMed"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for heading in ("below unigram", "sparsity", "of all weights", "mask digest"):
        table.add_column(heading, justify="right")
    for r in results:
        losses = [
            f"{r.last[f'{s}/mlm_loss']:.3f} ({r.last[f'{s}/unigram_loss']:.3f})"
            for s in ("validation/general", "validation/pubmed")
        ]
        table.add_row(
            f"{r.name}\n{r.what}",
            str(r.steps),
            f"{r.tokens:,}",
            f"{r.seconds:.0f}",
            f"{r.tokens / r.seconds:,.0f}",
            *losses,
            f"{r.margin():.3f}",
            f"{r.last['sparsity/actual']:.1%}",
            f"{r.last['sparsity/actual_all_weights']:.1%}",
            r.last["sparsity/digest"],
        )
    return table


def fill_in_a_fresh_process() -> list[tuple[str, float]]:
    """The likeliest words for the mask, from the exported folder, by transformers alone."""
    code = (
        "import json, sys; from pathlib import Path; from bert.folders.export import fill_mask; "
        "print(json.dumps(fill_mask(Path(sys.argv[1]), sentence=sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXPORT), SENTENCE],
        check=True,
        capture_output=True,
        text=True,
    )
    return [(word, p) for word, p in json.loads(done.stdout.splitlines()[-1])]


def build_speed_table() -> Table | None:
    """The exported model, dense and sparse, on this machine; None where there is no compiler.

    The demo's model is small and the machine may be busy: benchmarks/results has figures.
    """
    from sparsebert.inference.bench import run_bench
    from sparsebert.inference.errors import BadInput as NotHere

    try:
        report = run_bench(EXPORT, batches=[1], lengths=[128], rounds=5, limit_seconds=5.0)
    except NotHere as error:
        print(f"the sparse model is not measured: {error}", file=sys.stderr)
        return None
    figures = {figure.engine: figure for figure in report.figures}
    table = Table(title="Serving: 128 tokens on one thread, median of interleaved rounds")
    for heading in ("model", "density", "dense ms", "sparse ms", "ratio", "largest difference"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    table.add_row(
        str(EXPORT),
        f"{report.density:.1%}",
        f"{figures['torch'].median_ms:.2f}",
        f"{figures['sparse'].median_ms:.2f}",
        f"{figures['torch'].over_sparse or 0:.2f}",
        f"{figures['sparse'].largest_difference:.0e}",
    )
    return table


def main() -> int:
    """Print the report; 1 if a stage broke the promise."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        results = [read_stage(*stage) for stage in STAGES]
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(f"\n{SENTENCE}", markup=False)
    for word, probability in fill_in_a_fresh_process():
        console.print(f"  {probability:6.1%}  {word}", markup=False)
    console.print()
    console.print(build_table(results))
    speed = build_speed_table()
    if speed is not None:
        console.print(speed)
    console.print("run folders   " + "  ".join(f"runs/{r.name}" for r in results))
    console.print(f"model         {EXPORT} (AutoModelForMaskedLM.from_pretrained)")
    console.print(f"TensorBoard   {sys.executable} -m tensorboard.main --logdir runs")
    broken = [r.name for r in results if not r.kept_promise()]
    if broken:
        console.print(f"broken promise: {', '.join(broken)}, see the column 'below unigram'")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
