"""Real text prepared once, and small corpora whose every token is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bert.corpora.prepare import prepare
from bert.corpora.report import PrepareReport
from bert.corpora.shards import Shard, TokenCorpus
from bert.vocabulary import Vocabulary, load_vocabulary

SAMPLES = Path(__file__).parents[4] / "samples"
WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "to", "tree", "un", "##able", "."]


@dataclass(frozen=True)
class Prepared:
    report: PrepareReport
    inputs: list[Path]
    vocabulary_path: Path


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return load_vocabulary(SAMPLES / "vocab.txt")


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The samples' Wikipedia articles and chapters, in several shards."""
    inputs = [SAMPLES / "wikipedia.jsonl.gz", SAMPLES / "books.jsonl.gz"]
    output = tmp_path_factory.mktemp("prepared") / "general"
    path = SAMPLES / "vocab.txt"
    report = prepare("text", inputs, output, path, shard_tokens=200_000)
    return Prepared(report, inputs, path)


@pytest.fixture(scope="session")
def pubmed(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    inputs = [SAMPLES / "pubmed.xml.gz", SAMPLES / "pubmed-29768149.xml"]
    output = tmp_path_factory.mktemp("prepared") / "pubmed"
    path = SAMPLES / "vocab.txt"
    return Prepared(prepare("pubmed", inputs, output, path), inputs, path)


@pytest.fixture
def small_vocabulary_path(tmp_path: Path) -> Path:
    path = tmp_path / "small-vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return path


@pytest.fixture
def make_corpus(vocabulary: Vocabulary) -> Callable[..., TokenCorpus]:
    """Corpora in memory: document lengths for each shard, every `unknown_every`-th token [UNK].

    The tokens count up from 1000 through a shard, so that each tells where it came from.
    """

    def make(*lengths: Sequence[int], unknown_every: int = 0) -> TokenCorpus:
        shards = []
        for shard_lengths in lengths:
            offsets = np.concatenate([[0], np.cumsum(shard_lengths)]).astype(np.int64)
            tokens = (1000 + np.arange(offsets[-1]) % 29_000).astype(np.uint16)
            if unknown_every:
                tokens[::unknown_every] = vocabulary.unk_id
            special = np.flatnonzero(tokens == vocabulary.unk_id)
            shards.append(Shard(tokens, offsets, special))
        documents = sum(len(shard.offsets) - 1 for shard in shards)
        tokens_in_all = sum(len(shard.tokens) for shard in shards)
        return TokenCorpus(tuple(shards), documents, tokens_in_all, "00" * 32)

    return make
