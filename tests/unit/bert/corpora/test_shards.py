import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert.corpora.manifest import load_manifest
from bert.corpora.shards import open_corpus
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput
from tests.unit.bert.corpora.conftest import Prepared


@pytest.fixture
def folder(pubmed: Prepared, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pubmed.report.output, tmp_path / "pubmed"))


def test_corpus_agrees_with_its_manifest(general: Prepared, vocabulary: Vocabulary) -> None:
    corpus = open_corpus([general.report.output], vocabulary=vocabulary, verify=True)
    manifest = load_manifest(general.report.output)
    assert len(corpus.shards) == len(manifest.shards) > 2
    assert all(record.tokens <= 200_000 for record in manifest.shards)
    assert corpus.documents == len(corpus.lengths) == general.report.documents
    assert corpus.tokens == int(corpus.lengths.sum()) == general.report.tokens
    for shard in corpus.shards:
        assert isinstance(shard.tokens.base, np.memmap)
        special = np.isin(shard.tokens, vocabulary.special_ids)
        assert np.array_equal(np.flatnonzero(special), shard.special)


def test_fingerprint_knows_the_content_and_not_the_path(
    general: Prepared, pubmed: Prepared, folder: Path, vocabulary: Vocabulary
) -> None:
    def fingerprint(*paths: Path) -> str:
        return open_corpus(paths, vocabulary=vocabulary).fingerprint

    first, second = general.report.output, pubmed.report.output
    assert fingerprint(second) == fingerprint(folder)
    different = {fingerprint(*p) for p in ((first,), (second,), (first, second), (second, first))}
    assert len(different) == 4


@pytest.mark.parametrize("kind", ["tokens", "offsets", "special"])
def test_truncated_and_missing_files_are_always_found(
    folder: Path, vocabulary: Vocabulary, kind: str
) -> None:
    path = folder / f"{kind}-00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=rf"{kind}-00000\.npy has \d+ bytes.*sparsebert prepare"):
        open_corpus([folder], vocabulary=vocabulary)
    path.unlink()
    with pytest.raises(BadInput, match=rf"{kind}-00000\.npy is missing"):
        open_corpus([folder], vocabulary=vocabulary)


@pytest.mark.parametrize("kind", ["tokens", "offsets", "special"])
def test_a_flipped_bit_is_found_by_verify(folder: Path, vocabulary: Vocabulary, kind: str) -> None:
    path = folder / f"{kind}-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"is damaged \(its SHA-256 differs\)"):
        open_corpus([folder], vocabulary=vocabulary, verify=True)


def test_a_damaged_array_header_is_a_clear_sentence(folder: Path, vocabulary: Vocabulary) -> None:
    path = folder / "tokens-00000.npy"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"tokens-00000\.npy cannot be read"):
        open_corpus([folder], vocabulary=vocabulary)


def test_another_vocabulary_is_refused_with_the_way_out(
    folder: Path, small_vocabulary_path: Path, pubmed: Prepared
) -> None:
    with pytest.raises(BadInput) as caught:
        open_corpus([folder], vocabulary=load_vocabulary(small_vocabulary_path))
    said = str(caught.value)
    assert str(folder) in said and "30522 tokens, uncased, SHA-256 07eced375cec" in said
    assert f"run `sparsebert prepare` again with --vocab {small_vocabulary_path}" in said
    cased = load_vocabulary(pubmed.vocabulary_path, lower_case=False)
    with pytest.raises(BadInput, match="uncased.* cased"):
        open_corpus([folder], vocabulary=cased)


def test_a_manifest_cannot_be_trusted(folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["token_file"]["name"] = "../outside.npy"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"at shards\.0\.token_file\.name"):
        open_corpus([folder], vocabulary=vocabulary)
    path.write_text(path.read_text()[:100])
    with pytest.raises(BadInput, match=r"manifest\.json is damaged"):
        open_corpus([folder], vocabulary=vocabulary)
    with pytest.raises(BadInput, match="holds no prepared corpus"):
        open_corpus([tmp_path / "nowhere"], vocabulary=vocabulary)
    with pytest.raises(BadInput, match=r"data\.shards"):
        open_corpus([], vocabulary=vocabulary)
