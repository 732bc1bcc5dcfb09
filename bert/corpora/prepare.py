"""Text -> a prepared corpus: OUTPUT for training and its sibling OUTPUT-validation.

    inputs --readers--> documents --cleaning--> distinct texts --vocabulary--> ids --shards--> disk

Everything streams; see cleaning.py for the one thing in memory that grows with the corpus. Both
folders are built under a temporary sibling name and renamed when complete, so an error or a crash
leaves neither. OUTPUT-validation also holds `unigram_counts.npy` (int64 [vocabulary size], how
often each token occurs in OUTPUT): the unigram predictor that validation losses are compared with.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bert.corpora.cleaning import CleanDocument, clean_documents
from bert.corpora.formats import Format, check_source
from bert.corpora.inputs import Input, list_inputs
from bert.corpora.manifest import (
    MANIFEST_NAME,
    UNIGRAM_COUNTS_NAME,
    InputRecord,
    Manifest,
    Options,
    Source,
    check_files,
    load_manifest,
    save_array,
    save_manifest,
    vocabulary_record,
)
from bert.corpora.progress import PrepareProgress, ProgressMeter
from bert.corpora.readers import read_inputs
from bert.corpora.report import PrepareReport
from bert.corpora.shards import SHARD_TOKENS, ShardWriter
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput

VALIDATION_FRACTION = 0.05
MIN_CHARACTERS = 100  # shorter documents are mostly headings, redirects and captions
# Texts tokenised at a time: enough to keep all cores busy, small enough to stay in memory.
BATCH_CHARACTERS = 4 << 20


def prepare(
    source: Source,
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    vocabulary_path: str | os.PathLike[str],
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    min_characters: int = MIN_CHARACTERS,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> PrepareReport:
    """Write OUTPUT and OUTPUT-validation, or find that they are there already.

    Raises:
        BadInput: an input, the vocabulary or an option is wrong, OUTPUT holds something else, or
            nothing is left for one of the splits.
    """
    started = time.monotonic()
    check_source(source)
    if not 0 < validation_fraction < 1:
        raise BadInput(f"The validation fraction is {validation_fraction}: give one within (0, 1).")
    output = Path(output)
    if output.name in ("", ".."):
        raise BadInput(f"The output {output} is no name for a new folder: choose another --output.")
    vocabulary = load_vocabulary(vocabulary_path)
    options = Options(
        source=source, validation_fraction=validation_fraction, min_characters=min_characters
    )
    files, passed_over = list_inputs(source, inputs)
    plan = Manifest(
        tool_version=_tool_version(),
        split="train",
        options=options,
        inputs=[InputRecord(name=i.name, size_bytes=i.size_bytes, sha256=i.sha256) for i in files],
        vocabulary=vocabulary_record(vocabulary),
        documents=0,
        tokens=0,
        dropped={},
        shards=[],
        passed_over=passed_over,
    )
    done = _already_prepared(plan, output)
    if done is not None:
        return _report(output, plan, *done, started=started)
    by_format: Counter[Format] = Counter()
    with _staging(output) as staging:
        done = _already_prepared(plan, output)  # again, now that nobody else can be writing it
        if done is not None:
            return _report(output, plan, *done, started=started)
        manifests = _write_splits(
            plan,
            files,
            staging,
            vocabulary=vocabulary,
            shard_tokens=shard_tokens,
            by_format=by_format,
            on_progress=on_progress,
            started=started,
        )
        # Validation first: its presence without OUTPUT marks a crash between the two.
        for split, final in (("validation", _validation_of(output)), ("train", output)):
            if final.exists():
                shutil.rmtree(final)
            os.replace(staging / split, final)
    return _report(output, plan, *manifests, by_format=by_format, started=started)


def _validation_of(output: Path) -> Path:
    return output.with_name(output.name + "-validation")


def _already_prepared(plan: Manifest, output: Path) -> tuple[Manifest, Manifest] | None:
    """The manifests of both splits if they are what `plan` asks for, None if neither is there."""
    found: list[Manifest | None] = []
    for directory in (output, _validation_of(output)):
        if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
            found.append(None)
            continue
        if not (directory / MANIFEST_NAME).exists():
            raise BadInput(
                f"{directory} exists and is not a prepared corpus: choose another --output."
            )
        manifest = load_manifest(directory)
        if _identity(manifest) != _identity(plan):
            raise BadInput(
                f"{directory} was prepared from other inputs, options or another vocabulary: "
                "remove it or choose another --output."
            )
        check_files(manifest, directory=directory, verify=False)
        found.append(manifest)
    train, validation = found
    if train is None:
        return None  # a validation split of the same identity is left from a crash
    if validation is None:
        raise BadInput(
            f"{_validation_of(output)} is missing: remove {output} and prepare it again."
        )
    return train, validation


def _identity(manifest: Manifest) -> tuple[object, ...]:
    inputs = [item.sha256 for item in manifest.inputs]
    return manifest.format_version, manifest.options, manifest.vocabulary, inputs


@contextlib.contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """An empty folder beside `output`, locked while it is used and removed at the end."""
    staging = output.with_name(f".{output.name}.preparing")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = open(staging / "lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise BadInput(
            f"{output} cannot be written ({error.strerror}): choose another --output."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(
                f"Another `sparsebert prepare` is writing {output}: wait for it or stop it."
            ) from None
        try:
            for split in ("train", "validation"):
                shutil.rmtree(staging / split, ignore_errors=True)  # left by a killed one
                (staging / split).mkdir()
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _write_splits(
    plan: Manifest,
    inputs: Sequence[Input],
    staging: Path,
    *,
    vocabulary: Vocabulary,
    shard_tokens: int,
    by_format: Counter[Format],
    on_progress: Callable[[PrepareProgress], None] | None,
    started: float,
) -> tuple[Manifest, Manifest]:
    dropped: Counter[str] = Counter()
    train, validation = (
        ShardWriter(staging / split, vocabulary=vocabulary, shard_tokens=shard_tokens)
        for split in ("train", "validation")
    )
    documents = clean_documents(
        read_inputs(plan.options.source, inputs, dropped=dropped),
        validation_fraction=plan.options.validation_fraction,
        min_characters=plan.options.min_characters,
        dropped=dropped,
    )
    progress = ProgressMeter(inputs, started=started)
    for batch in _batches(documents):
        ids = vocabulary.encode([document.text for document in batch])
        for document, tokens in zip(batch, ids, strict=True):
            progress.add(document, tokens=len(tokens))
            by_format[document.format] += 1
            (validation if document.is_validation else train).add(tokens)
        if on_progress is not None:
            on_progress(progress.now())
    for split, writer in (("training", train), ("validation", validation)):
        if writer.tokens == 0:
            raise BadInput(
                f"No text is left for {split} (dropped: {dict(dropped) or 'nothing'}): give more "
                "input or another validation fraction or minimum length."
            )
        writer.flush()
    counts = save_array(train.counts, directory=validation.directory, name=UNIGRAM_COUNTS_NAME)
    return (
        _save_split(plan, train, dropped=dropped),
        _save_split(
            plan.model_copy(update={"split": "validation", "unigram_counts": counts}),
            validation,
            dropped=dropped,
        ),
    )


def _save_split(plan: Manifest, writer: ShardWriter, *, dropped: Counter[str]) -> Manifest:
    manifest = plan.model_copy(
        update={
            "documents": writer.documents,
            "tokens": writer.tokens,
            "dropped": dict(sorted(dropped.items())),
            "shards": writer.shards,
        }
    )
    save_manifest(manifest, directory=writer.directory)
    return manifest


def _batches(documents: Iterable[CleanDocument]) -> Iterator[list[CleanDocument]]:
    batch: list[CleanDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _report(
    output: Path,
    plan: Manifest,
    train: Manifest,
    validation: Manifest,
    *,
    started: float,
    by_format: Counter[Format] | None = None,
) -> PrepareReport:
    already_done = by_format is None
    seconds = time.monotonic() - started
    return PrepareReport(
        output=output,
        validation_output=_validation_of(output),
        already_done=already_done,
        documents=train.documents,
        tokens=train.tokens,
        validation_documents=validation.documents,
        validation_tokens=validation.tokens,
        documents_by_format=None if by_format is None else dict(sorted(by_format.items())),
        dropped=train.dropped,
        passed_over=plan.passed_over,
        seconds=seconds,
        tokens_per_second=0.0 if already_done else (train.tokens + validation.tokens) / seconds,
    )


def _tool_version() -> str:
    try:
        return version("sparsebert")
    except PackageNotFoundError:  # the checkout run as it is
        return "not installed"
