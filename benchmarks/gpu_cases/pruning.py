"""What a mask update costs, beside torch's own ways to find a threshold, and what masks cost."""

from collections.abc import Iterator
from typing import Any

BERT_BASE, BERT_LARGE_AND_MORE = 84_934_656, 339_738_624  # prunable weights; four times as many
PEERS = ("torch.kthvalue", "torch.sort")
OURS = ("plain read", "sparsebert: threshold")


def threshold(*, device: str, smoke: bool, numel: int) -> Iterator[dict[str, Any]]:
    """benchmarks/threshold.py on one rank: ours against torch.kthvalue and torch.sort."""
    from benchmarks import threshold as script

    numel = numel // 1000 if smoke else numel
    left_out = [m for m in script.METHODS if not m.startswith((*OURS, *PEERS))]
    options = script.build_parser().parse_args(
        ["--device", device, "--together", "--repeats", "3" if smoke else "30"]
    )
    options.skip = left_out
    rows = {}
    for row in script.find_rows(options, numel, ranks=1):
        rows[row.method] = row
        name = row.method.removeprefix("sparsebert: ")
        yield {f"{name}, ms": 1e3 * row.median_seconds, f"{name}, best ms": 1e3 * row.seconds}
    ours = rows["sparsebert: threshold"]
    for peer in PEERS:
        ratio = rows[peer].median_seconds / ours.median_seconds
        yield {f"times as fast as {peer}": ratio}
    yield {"extra memory, share of the weights": ours.extra_bytes / (4 * numel)}


def enforcement(*, device: str, smoke: bool, rows: int) -> Iterator[dict[str, Any]]:
    """benchmarks/enforcement.py with BERT-base: what the masks cost a step, and an update."""
    from benchmarks import enforcement as script

    size = ["--layers", "12", "--rows", str(rows), "--row-tokens", "512", "--pairs", "20"]
    if smoke:
        size = ["--layers", "1", "--hidden", "64", "--rows", "2", "--row-tokens", "32"]
        size += ["--pairs", "2", "--vocab-size", "200"]
    options = script.build_parser().parse_args(["--device", device, "--precision", "bf16", *size])
    yield script.measure(options)
