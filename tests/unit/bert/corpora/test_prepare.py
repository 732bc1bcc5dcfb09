import fcntl
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert.corpora import prepare as prepare_module
from bert.corpora.cleaning import normalise_text
from bert.corpora.manifest import load_manifest
from bert.corpora.prepare import prepare
from bert.corpora.progress import PrepareProgress
from bert.corpora.report import PrepareReport, describe_report
from bert.corpora.shards import TokenCorpus, open_corpus
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput
from tests.unit.bert.corpora.conftest import Prepared

TEXTS = [f"the cat sat on the mat number {n} and the dog ran to the tree" for n in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


def run(source: Path, output: Path, vocabulary_path: Path, **options: object) -> object:
    settings = {"validation_fraction": 0.3, "min_characters": 10, **options}
    return prepare("text", [source], output, vocabulary_path, **settings)  # type: ignore[arg-type]


def documents(corpus: TokenCorpus) -> list[list[int]]:
    return [
        tokens.tolist()
        for shard in corpus.shards
        for tokens in np.split(shard.tokens, shard.offsets[1:-1])
    ]


def test_every_real_document_is_in_one_split_as_encoded(
    general: Prepared, vocabulary: Vocabulary
) -> None:
    wanted = []
    for path in general.inputs:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            wanted += [normalise_text(json.loads(line)["text"]) for line in lines]
    report = general.report
    found = [
        ids
        for output in (report.output, report.validation_output)
        for ids in documents(open_corpus([output], vocabulary=vocabulary))
    ]
    assert sorted(found) == sorted(ids.tolist() for ids in vocabulary.encode(wanted))
    assert report.documents + report.validation_documents == 160
    assert report.validation_documents > 0 and not report.already_done


def test_unigram_counts_are_of_the_training_split(
    general: Prepared, vocabulary: Vocabulary
) -> None:
    corpus = open_corpus([general.report.output], vocabulary=vocabulary)
    tokens = np.concatenate([shard.tokens for shard in corpus.shards])
    counts = np.load(general.report.validation_output / "unigram_counts.npy")
    assert counts.dtype == np.int64
    assert np.array_equal(counts, np.bincount(tokens, minlength=vocabulary.size))


def test_documents_are_counted_by_format(
    source: Path, tmp_path: Path, small_vocabulary_path: Path
) -> None:
    texts = [f"the cat {n} sat on the tree and the dog ran to the mat" for n in range(40)]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": [text + " again" for text in texts]}), tmp_path / "table")
    inputs = [source, lines, tmp_path / "table", source]  # 60 texts, 40, 40 and 60 duplicates

    def run_all() -> PrepareReport:
        return prepare(
            "text",
            inputs,
            tmp_path / "out",
            small_vocabulary_path,
            validation_fraction=0.3,
            min_characters=10,
        )

    report = run_all()
    assert report.documents_by_format == {"json": 40, "parquet": 40, "text": 60}
    assert report.documents + report.validation_documents == 140
    described = describe_report(report)
    assert "\ndocuments by format: 40 JSON lines, 40 Parquet, 60 plain text\n" in described
    again = run_all()
    assert again.already_done and again.documents_by_format is None
    assert "by format" not in describe_report(again)


def test_files_passed_over_are_reported_and_kept_in_the_manifest(
    source: Path, tmp_path: Path, small_vocabulary_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.move(source, folder / "a.txt")
    run(folder, tmp_path / "out", small_vocabulary_path)
    without = (tmp_path / "out" / "manifest.json").read_bytes()
    assert b'"passed_over"' not in without, "the bytes that it had before there was such a field"
    beside = [*(folder / f"a{number}.md5" for number in range(5)), folder / "README"]
    for path in beside:
        path.write_text("0a" * 16)
    # The same corpus: what is passed over is no input.
    report = run(folder, tmp_path / "out", small_vocabulary_path)
    assert isinstance(report, PrepareReport) and report.already_done
    assert {Path(item.name) for item in report.passed_over} == set(beside)
    report = run(folder, tmp_path / "other", small_vocabulary_path)
    assert isinstance(report, PrepareReport)
    for split in ("other", "other-validation"):
        assert load_manifest(tmp_path / split).passed_over == report.passed_over
    described = describe_report(report)
    assert "\npassed over 5 (checksum): a0.md5, a1.md5, a2.md5, ...\n" in described
    assert "\npassed over 1 (README or licence): README\n" in described
    other = json.loads((tmp_path / "other" / "manifest.json").read_bytes())
    del other["passed_over"]
    assert other == json.loads(without)


def test_manifest_tells_inputs_and_everything_dropped(pubmed: Prepared) -> None:
    manifest = load_manifest(pubmed.report.output)
    assert [(Path(i.name).name, i.size_bytes) for i in manifest.inputs] == [
        ("pubmed.xml.gz", 654_158),
        ("pubmed-29768149.xml", 21_752),
    ]
    assert manifest.inputs[0].sha256.startswith("23040f3c46ac2ce2")
    assert manifest.dropped == pubmed.report.dropped == {"without_abstract": 78}
    assert pubmed.report.documents + pubmed.report.validation_documents == 527
    assert load_manifest(pubmed.report.validation_output).split == "validation"


def test_second_time_is_already_done(general: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(prepare_module, "_write_splits", fail)
    first = general.report
    again = prepare("text", general.inputs, first.output, general.vocabulary_path)
    assert again.already_done
    assert (again.documents, again.tokens) == (first.documents, first.tokens)
    assert (again.validation_tokens, again.dropped) == (first.validation_tokens, first.dropped)


def test_moved_inputs_are_the_same_and_other_ones_are_refused(
    source: Path, tmp_path: Path, small_vocabulary_path: Path
) -> None:
    output = tmp_path / "out"
    run(source, output, small_vocabulary_path)
    moved = Path(shutil.copy(source, tmp_path / "moved"))
    assert run(moved, output, small_vocabulary_path).already_done  # type: ignore[attr-defined]
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(BadInput, match=r"out was prepared from other inputs.*choose another"):
        run(source, output, small_vocabulary_path, min_characters=11)
    moved.write_text("other text " * 20)
    with pytest.raises(BadInput, match="was prepared from other inputs"):
        run(moved, output, small_vocabulary_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_output_does_not_depend_on_the_order_of_inputs_or_shard_size(
    source: Path, tmp_path: Path, small_vocabulary_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "a", small_vocabulary_path)
    source.write_text("\n\n".join(TEXTS[::-1]))
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 200)
    run(source, tmp_path / "b", small_vocabulary_path, shard_tokens=100)
    vocabulary = load_vocabulary(small_vocabulary_path)
    for suffix in ("", "-validation"):
        one, other = (
            documents(open_corpus([tmp_path / (name + suffix)], vocabulary=vocabulary))
            for name in "ab"
        )
        assert sorted(one) == sorted(other) and len(one) > 5


@pytest.mark.parametrize(
    "content", [b'{"text": "a good one that is long enough"}\n{"text": \n', b"\xff\xff\xff", b"x"]
)
def test_bad_input_leaves_nothing(
    source: Path, tmp_path: Path, small_vocabulary_path: Path, content: bytes
) -> None:
    source.write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(BadInput):
        run(source, tmp_path / "out", small_vocabulary_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_crash_at_any_rename_leaves_nothing_that_stops_the_next_one(
    source: Path, tmp_path: Path, small_vocabulary_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    replace = os.replace
    for allowed in (0, 1):
        calls = iter(range(9))

        def crash(source: Path, target: Path, allowed: int = allowed, calls=calls) -> None:  # type: ignore[no-untyped-def]
            if next(calls) >= allowed:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, small_vocabulary_path)
        assert not output.exists()
        monkeypatch.setattr(os, "replace", replace)
    # What a killed process leaves: its staging folder, half full.
    staging = tmp_path / ".out.preparing"
    (staging / "train").mkdir(parents=True)
    (staging / "train" / "tokens-00000.npy").write_bytes(b"half")
    assert not run(source, output, small_vocabulary_path).already_done  # type: ignore[attr-defined]
    assert not staging.exists()
    open_corpus([output], vocabulary=load_vocabulary(small_vocabulary_path))


def test_two_at_once_and_foreign_folders_are_refused(
    source: Path, tmp_path: Path, small_vocabulary_path: Path
) -> None:
    output = tmp_path / "out"
    staging = tmp_path / ".out.preparing"
    staging.mkdir()
    with open(staging / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="Another `sparsebert prepare` is writing"):
            run(source, output, small_vocabulary_path)
    output.mkdir()
    (output / "thesis.txt").write_text("keep me")
    with pytest.raises(BadInput, match="is not a prepared corpus"):
        run(source, output, small_vocabulary_path)
    assert (output / "thesis.txt").read_text() == "keep me"


def test_nothing_left_for_a_split_is_refused(
    source: Path, tmp_path: Path, small_vocabulary_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"No text is left for validation"):
        run(source, tmp_path / "out", small_vocabulary_path, validation_fraction=1e-9)
    with pytest.raises(BadInput, match=r"No text is left for training \(dropped: {'too_short'"):
        run(source, tmp_path / "out", small_vocabulary_path, min_characters=1000)
    with pytest.raises(BadInput, match="validation fraction is 1.5"):
        run(source, tmp_path / "out", small_vocabulary_path, validation_fraction=1.5)
    with pytest.raises(BadInput, match="no name for a new folder"):
        run(source, Path("."), small_vocabulary_path)


def test_progress_ends_near_the_whole(
    source: Path, tmp_path: Path, small_vocabulary_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "BATCH_CHARACTERS", 500)
    seen: list[PrepareProgress] = []
    run(source, tmp_path / "out", small_vocabulary_path, on_progress=seen.append)
    size_bytes = source.stat().st_size
    read = [progress.read_input_bytes for progress in seen]
    assert len(seen) > 3 and read == sorted(read) and 0.9 * size_bytes < read[-1] <= size_bytes
    assert seen[-1].documents == 60 and seen[-1].input_bytes == size_bytes
