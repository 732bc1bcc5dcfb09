"""Documents -> segments -> packed rows: an index, computed once, no token read.

    documents (lengths)        cut into consecutive pieces of max_seq_len - 2 tokens
    segments  [CLS] piece [SEP], at most max_seq_len, inside one document
    rows      exactly row_tokens tokens; no padding but a row's tail

Which lengths share a row is decided on the histogram of lengths, longest first, best fit (Krell et
al. 2021, arXiv 2107.02027, sec. 3.1): its cost depends on the number of different lengths, not of
segments. Then the segments of each length, shuffled, are dealt to the places of that length, and
the rows are shuffled. The result depends on (corpus fingerprint, max_seq_len, row_tokens, seed).

Sizes in tokens count [CLS] and [SEP], except `segment_length`, the tokens read from the corpus.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert.corpora.packing_cache import load_cached, save_cached
from bert.corpora.randomness import Purpose, random_permutation
from bert.corpora.shards import Int64Array, TokenCorpus
from distributed.errors import BadInput

Int32Array = npt.NDArray[np.int32]
SPECIALS_PER_SEGMENT = 2
# A document's last piece below this teaches little beyond [CLS] and [SEP]: dropped and counted.
MIN_TAIL_TOKENS = 8
# Part of the cache key: raise it when the index computed from the same inputs changes.
INDEX_VERSION = 1

Pattern = tuple[tuple[int, ...], int]  # sizes of the segments of a row, number of such rows


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Row r holds segments row_offsets[r] .. row_offsets[r + 1] - 1 (segments are in row order)."""

    row_offsets: Int64Array  # [rows + 1]
    tokens_per_row: Int32Array  # [rows] without the padding
    maskable_per_row: Int32Array  # [rows] tokens that are not special
    segment_shard: Int32Array  # [segments]
    segment_start: Int64Array  # [segments] position in the shard
    segment_length: Int32Array  # [segments] tokens read from there, without [CLS] and [SEP]
    dropped: Int64Array  # [2] short tails left out, and their tokens
    max_seq_len: int
    row_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.tokens_per_row)

    @property
    def efficiency(self) -> float:
        """Share of all places in rows that hold a token."""
        return float(self.tokens_per_row.sum(dtype=np.int64) / (self.num_rows * self.row_tokens))


ARRAY_NAMES = [
    item.name for item in fields(PackedRows) if item.name not in ("max_seq_len", "row_tokens")
]


def pack_corpus(
    corpus: TokenCorpus,
    *,
    max_seq_len: int,
    row_tokens: int,
    seed: int,
    cache_dir: Path | None = None,
) -> PackedRows:
    """The packed rows of a corpus, from `cache_dir` if they are there and sound.

    Raises:
        BadInput: the corpus has no document of MIN_TAIL_TOKENS tokens.
    """
    key = {
        "index_version": INDEX_VERSION,
        "fingerprint": corpus.fingerprint,
        "max_seq_len": max_seq_len,
        "row_tokens": row_tokens,
        "seed": seed,
        "min_tail_tokens": MIN_TAIL_TOKENS,
    }
    arrays = None if cache_dir is None else load_cached(cache_dir, key=key, names=ARRAY_NAMES)
    if arrays is None:
        rows = _pack(corpus, max_seq_len=max_seq_len, row_tokens=row_tokens, seed=seed)
        if cache_dir is not None:
            arrays = {name: getattr(rows, name) for name in ARRAY_NAMES}
            save_cached(cache_dir, key=key, arrays=arrays)
        return rows
    return PackedRows(**arrays, max_seq_len=max_seq_len, row_tokens=row_tokens)


def _pack(corpus: TokenCorpus, *, max_seq_len: int, row_tokens: int, seed: int) -> PackedRows:
    segments = _cut_documents(corpus, piece_tokens=max_seq_len - SPECIALS_PER_SEGMENT)
    count = len(segments.length)
    if count == 0:
        raise BadInput(
            f"The corpus has no document of {MIN_TAIL_TOKENS} tokens or more: prepare more text."
        )
    sizes = segments.length + SPECIALS_PER_SEGMENT
    patterns = pack_histogram(np.bincount(sizes), capacity=row_tokens)
    place_sizes, row_offsets = _lay_out_rows(patterns, seed=seed)

    # Deal the shuffled segments of each size to the places of that size.
    shuffled = random_permutation(Purpose.DEAL_SEGMENTS, seed=seed, count=count)
    segments_by_size = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    places_by_size = np.argsort(place_sizes, kind="stable")
    dealt = np.empty(count, dtype=np.int64)
    dealt[places_by_size] = segments_by_size

    row_starts = row_offsets[:-1]
    return PackedRows(
        row_offsets=row_offsets,
        tokens_per_row=np.add.reduceat(sizes[dealt], row_starts).astype(np.int32),
        maskable_per_row=np.add.reduceat(segments.maskable[dealt], row_starts).astype(np.int32),
        segment_shard=segments.shard[dealt],
        segment_start=segments.start[dealt],
        segment_length=segments.length[dealt],
        dropped=segments.dropped,
        max_seq_len=max_seq_len,
        row_tokens=row_tokens,
    )


@dataclass(frozen=True, eq=False)
class _Segments:
    shard: Int32Array  # [segments], as the next three
    start: Int64Array
    length: Int32Array
    maskable: Int32Array
    dropped: Int64Array  # [2]


def _cut_documents(corpus: TokenCorpus, *, piece_tokens: int) -> _Segments:
    min_tail = min(MIN_TAIL_TOKENS, piece_tokens)
    shards, starts, lengths, maskable = [], [], [], []
    dropped = np.zeros(2, dtype=np.int64)
    for index, shard in enumerate(corpus.shards):
        document_tokens = shard.lengths
        tail = document_tokens % piece_tokens
        keeps_tail = tail >= min_tail
        pieces = document_tokens // piece_tokens + keeps_tail
        dropped += [np.count_nonzero((tail > 0) & ~keeps_tail), tail[~keeps_tail].sum()]
        # Piece j of its document, over all documents end to end.
        piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        taken = piece * piece_tokens
        length = np.minimum(np.repeat(document_tokens, pieces) - taken, piece_tokens)
        start = np.repeat(shard.offsets[:-1], pieces) + taken
        special = np.searchsorted(shard.special, start + length)
        special -= np.searchsorted(shard.special, start)
        shards.append(np.full(len(start), index, dtype=np.int32))
        starts.append(start)
        lengths.append(length.astype(np.int32))
        maskable.append((length - special).astype(np.int32))
    return _Segments(
        shard=np.concatenate(shards),
        start=np.concatenate(starts),
        length=np.concatenate(lengths),
        maskable=np.concatenate(maskable),
        dropped=dropped,
    )


def pack_histogram(counts: npt.NDArray[np.integer], *, capacity: int) -> list[Pattern]:
    """Longest first, best fit, on counts: `counts[s]` segments of size s, rows of `capacity`.

    Gives exactly the rows that placing one segment after another would, longest first, each in the
    row with the least sufficient space.
    """
    if len(counts) > capacity + 1 and counts[capacity + 1 :].any():
        raise ValueError(f"a segment is larger than a row of {capacity}")
    open_rows: list[list[Pattern]] = [[] for _ in range(capacity + 1)]  # by space left
    for size in range(len(counts) - 1, 0, -1):
        left = int(counts[size])
        while left:
            space = next((s for s in range(size, capacity + 1) if open_rows[s]), None)
            # A new row: as many as needed, empty.
            sizes, rows = ((), left) if space is None else open_rows[space].pop()
            space = capacity if space is None else space
            # Best fit fills a row with this size before it touches the next one.
            fits = space // size
            full = min(rows, left // fits)
            if full:
                open_rows[space - fits * size].append((sizes + (size,) * fits, full))
                left -= full * fits
                rows -= full
            if rows and left and left < fits:
                open_rows[space - left * size].append((sizes + (size,) * left, 1))
                left = 0
                rows -= 1
            if rows and sizes:
                open_rows[space].append((sizes, rows))
    return [pattern for patterns in open_rows for pattern in patterns]


def _lay_out_rows(patterns: list[Pattern], *, seed: int) -> tuple[Int32Array, Int64Array]:
    """Sizes of all places, row by row, and where each row starts, the rows shuffled."""
    sizes = np.concatenate([np.tile(np.array(row, dtype=np.int32), n) for row, n in patterns])
    per_row = np.concatenate([np.full(n, len(row), dtype=np.int64) for row, n in patterns])
    order = random_permutation(Purpose.SHUFFLE_ROWS, seed=seed, count=len(per_row))
    starts = (np.cumsum(per_row) - per_row)[order]
    per_row = per_row[order]
    row_offsets = np.zeros(len(per_row) + 1, dtype=np.int64)
    np.cumsum(per_row, out=row_offsets[1:])
    place = np.repeat(starts - row_offsets[:-1], per_row) + np.arange(len(sizes))
    return sizes[place], row_offsets
