from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert.corpora.packing import MIN_TAIL_TOKENS, PackedRows, pack_corpus, pack_histogram
from bert.corpora.shards import TokenCorpus, open_corpus
from bert.vocabulary import Vocabulary
from distributed.errors import BadInput
from tests.unit.bert.corpora.conftest import Prepared

MakeCorpus = Callable[..., TokenCorpus]
ARRAYS = ("row_offsets", "tokens_per_row", "maskable_per_row", "segment_shard", "segment_start")


def best_fit_one_by_one(counts: list[int], capacity: int) -> Counter[tuple[int, ...]]:
    """Longest first, each in the row with the least sufficient space: the plain algorithm."""
    rows: list[list[int]] = []
    for size in range(len(counts) - 1, 0, -1):
        for _ in range(counts[size]):
            fitting = [row for row in rows if sum(row) + size <= capacity]
            if fitting:
                max(fitting, key=sum).append(size)
            else:
                rows.append([size])
    return Counter(tuple(row) for row in rows)


@given(
    st.integers(5, 40).flatmap(
        lambda capacity: st.tuples(
            st.just(capacity), st.lists(st.integers(0, 12), min_size=2, max_size=capacity + 1)
        )
    )
)
def test_histogram_packing_equals_packing_one_by_one(case: tuple[int, list[int]]) -> None:
    capacity, counts = case
    counts[0] = 0
    found: Counter[tuple[int, ...]] = Counter()
    for sizes, rows in pack_histogram(np.array(counts), capacity=capacity):
        assert rows > 0 and sum(sizes) <= capacity
        found[sizes] += rows
    expected = best_fit_one_by_one(counts, capacity)
    placed = Counter(size for sizes, rows in found.items() for size in sizes * rows)
    assert placed == {size: n for size, n in enumerate(counts) if n}
    # Equal up to which of several rows of equal space was taken.
    assert sum(found.values()) == sum(expected.values())
    assert Counter(sum(row) for row in found.elements()) == Counter(
        sum(row) for row in expected.elements()
    )


def test_a_segment_larger_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than a row"):
        pack_histogram(np.array([0] * 9 + [1]), capacity=8)


def check(rows: PackedRows, corpus: TokenCorpus) -> None:
    """Brute force: every document's pieces exactly once, rows within bounds, counts right."""
    piece = rows.max_seq_len - 2
    min_tail = min(MIN_TAIL_TOKENS, piece)
    wanted, dropped = [], []
    for index, shard in enumerate(corpus.shards):
        for start, end in zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True):
            for first in range(start, end, piece):
                size = min(piece, end - first)
                if size >= min_tail:
                    wanted.append((index, first, size))
                else:
                    dropped.append(size)
    found = zip(
        rows.segment_shard.tolist(),
        rows.segment_start.tolist(),
        rows.segment_length.tolist(),
        strict=True,
    )
    assert sorted(found) == wanted
    assert rows.dropped.tolist() == [len(dropped), sum(dropped)]
    assert rows.row_offsets[0] == 0 and rows.row_offsets[-1] == len(wanted)
    for row in range(rows.num_rows):
        here = slice(*rows.row_offsets[row : row + 2].tolist())
        lengths = rows.segment_length[here]
        assert len(lengths) > 0
        assert rows.tokens_per_row[row] == (lengths + 2).sum() <= rows.row_tokens
        maskable = 0
        places = zip(rows.segment_shard[here], rows.segment_start[here], lengths, strict=True)
        for shard, start, length in places:
            tokens = corpus.read(shard=int(shard), start=int(start), length=int(length))
            maskable += int((tokens != 100).sum())
        assert rows.maskable_per_row[row] == maskable


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=15), min_size=1, max_size=3),
    max_seq_len=st.integers(8, 40),
    extra=st.integers(0, 50),
    unknown_every=st.sampled_from([0, 1, 3]),
)
def test_packed_rows_hold_every_segment_once(
    make_corpus: MakeCorpus,
    lengths: list[list[int]],
    max_seq_len: int,
    extra: int,
    unknown_every: int,
) -> None:
    corpus = make_corpus(*lengths, unknown_every=unknown_every)
    if max(map(max, lengths)) < MIN_TAIL_TOKENS:
        return
    rows = pack_corpus(corpus, max_seq_len=max_seq_len, row_tokens=max_seq_len + extra, seed=3)
    check(rows, corpus)


def test_real_text_packs_well(general: Prepared, vocabulary: Vocabulary) -> None:
    corpus = open_corpus([general.report.output], vocabulary=vocabulary)
    for max_seq_len, least in ((128, 0.99), (512, 0.97)):
        rows = pack_corpus(corpus, max_seq_len=max_seq_len, row_tokens=512, seed=1)
        check(rows, corpus)
        assert rows.efficiency > least
        kept = rows.segment_length.sum() + rows.dropped[1]
        assert kept == corpus.tokens and rows.dropped[1] < 0.005 * corpus.tokens


def test_pure_function_of_its_inputs(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([50, 300, 7, 120], [90] * 20)

    def pack(seed: int) -> PackedRows:
        return pack_corpus(corpus, max_seq_len=32, row_tokens=64, seed=seed)

    for name in ARRAYS:
        assert np.array_equal(getattr(pack(1), name), getattr(pack(1), name))
    assert not np.array_equal(pack(1).segment_start, pack(2).segment_start)
    # The order of the data is a promise across versions of NumPy and of this package.
    assert pack(1).segment_start[:6].tolist() == [1140, 80, 930, 510, 1020, 570]


def test_first_rows_are_a_fair_sample(general: Prepared, vocabulary: Vocabulary) -> None:
    corpus = open_corpus([general.report.output], vocabulary=vocabulary)
    rows = pack_corpus(corpus, max_seq_len=128, row_tokens=512, seed=0)
    whole = np.mean(np.diff(rows.row_offsets))
    assert abs(np.mean(np.diff(rows.row_offsets[:201])) - whole) < 0.2 * whole


def test_a_corpus_of_crumbs_is_refused(make_corpus: MakeCorpus) -> None:
    with pytest.raises(BadInput, match="no document of 8 tokens"):
        pack_corpus(make_corpus([3, 7]), max_seq_len=32, row_tokens=64, seed=0)


def test_cache_is_used_verified_and_rebuilt(
    make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus([50, 300, 7, 120])
    cache = tmp_path / "cache"
    real_pack = pack_corpus.__globals__["_pack"]
    calls = []

    def counting(*args: object, **kwargs: object) -> PackedRows:
        calls.append(kwargs["seed"])
        return real_pack(*args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setitem(pack_corpus.__globals__, "_pack", counting)

    def pack(seed: int = 1) -> PackedRows:
        rows = pack_corpus(corpus, max_seq_len=32, row_tokens=64, seed=seed, cache_dir=cache)
        for name in ARRAYS:
            assert np.array_equal(
                getattr(rows, name),
                getattr(real_pack(corpus, max_seq_len=32, row_tokens=64, seed=seed), name),
            )
        return rows

    pack()
    pack()
    assert calls == [1]
    (entry,) = [path.name for path in cache.iterdir()]
    pack(seed=2)
    assert calls == [1, 2] and len(list(cache.iterdir())) == 2
    for damage in (b"", b"x", None):
        for path in cache.glob(f"{entry}/segment_start.npy"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data if damage is None else damage)
        calls.clear()
        pack()
        pack()
        assert calls == [1]
    assert not list(cache.glob(".*"))


def test_cache_that_cannot_be_written_is_done_without(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    rows = pack_corpus(
        make_corpus([50]), max_seq_len=32, row_tokens=64, seed=1, cache_dir=tmp_path / "file"
    )
    assert rows.num_rows == 1
