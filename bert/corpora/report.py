"""What a preparation did: the figures that the command line prints, and as text."""

from dataclasses import dataclass
from pathlib import Path

from bert.corpora.formats import Format
from bert.corpora.manifest import PassedOver

FORMAT_NAMES: dict[Format, str] = {
    "json": "JSON lines",
    "text": "plain text",
    "parquet": "Parquet",
    "xml": "PubMed XML",
    "hub": "hub data set",
}
NAMED = 3  # files that the text names for each reason to pass over them


@dataclass(frozen=True)
class PrepareReport:
    output: Path
    validation_output: Path
    already_done: bool
    documents: int
    tokens: int
    validation_documents: int
    validation_tokens: int
    documents_by_format: dict[Format, int] | None  # both splits; None if already done
    dropped: dict[str, int]
    passed_over: list[PassedOver]  # files of input folders that are not read
    seconds: float
    tokens_per_second: float  # both splits, all stages; 0 if already done


def describe_report(report: PrepareReport) -> str:
    """The report in lines, for a terminal."""
    lines = [
        f"{report.output}: {report.documents:,} documents, {report.tokens:,} tokens",
        f"{report.validation_output}: {report.validation_documents:,} documents, "
        f"{report.validation_tokens:,} tokens",
    ]
    if report.documents_by_format is not None:
        counts = report.documents_by_format.items()
        shown = ", ".join(f"{count:,} {FORMAT_NAMES[format]}" for format, count in counts)
        lines.append(f"documents by format: {shown}")
    names_by_reason: dict[str, list[str]] = {}
    for item in report.passed_over:
        names_by_reason.setdefault(item.reason, []).append(Path(item.name).name)
    for reason, names in names_by_reason.items():
        more = ", ..." if len(names) > NAMED else ""
        lines.append(f"passed over {len(names):,} ({reason}): {', '.join(names[:NAMED])}{more}")
    dropped = ", ".join(f"{count:,} {why}" for why, count in report.dropped.items()) or "nothing"
    done = "is there already" if report.already_done else f"took {report.seconds:.1f} s"
    return "\n".join([*lines, f"dropped: {dropped}; {done}"])
