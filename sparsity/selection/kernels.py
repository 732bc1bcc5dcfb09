"""Triton kernels: passes over many fragments in one launch, whatever their number and sizes.

A *row* of a table describes one fragment in int64, the columns below. Addresses stand for tensors,
so that fragments in different buffers share a launch. Each program takes one tile of one row, TILE
neighbouring weights, BLOCK at a time; programs whose tile lies beyond their row's end do nothing.
Atomics are relaxed: nothing is read before the kernel ends but the slots that `collect` hands out.

Only device.py launches these. With TRITON_INTERPRET=1 they run on a CPU, as the tests do.
"""

import triton
import triton.language as tl

WEIGHTS = tl.constexpr(0)  # address of fp32 [numel]
KEEP = tl.constexpr(1)  # address of int8 [numel], -1 live and 0 not; 0: all are live
NUMEL = tl.constexpr(2)
BEFORE = tl.constexpr(3)  # weights of the rows above
COLUMNS = tl.constexpr(4)
# To prune by, there are more.
MASK = tl.constexpr(4)  # address of int8 [numel], which changes
CUT = tl.constexpr(5)  # magnitude bits; smaller ones go
TIE = tl.constexpr(6)  # at the cut, positions whose hash, unsigned, is up to this go
UID = tl.constexpr(7)  # of the parameter
START = tl.constexpr(8)  # logical position of the first weight
OWNED_START = tl.constexpr(9)  # of what this rank owns, from the first weight on
OWNED_STOP = tl.constexpr(10)
PRUNE_COLUMNS = tl.constexpr(11)

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
NON_FINITE = tl.constexpr(0x7F800000)
BINS = tl.constexpr(2048)


@triton.jit
def _find_row(table, rows, columns: tl.constexpr):
    """This program's row, its number and address, and the number of its tile in it, int64."""
    program = tl.program_id(0)
    number = program % rows
    return number, table + number * columns, (program // rows).to(tl.int64)


@triton.jit
def _find_weights(row, first):
    """Where the row's weights from `first` int64 on are: of fp32, as int32."""
    return tl.load(row + WEIGHTS).to(tl.pointer_type(tl.int32)) + first


@triton.jit
def _find_keep(row, first, stop):
    """Where its mask is from there on, and up to where, at most `stop`, it is to be read."""
    address = tl.load(row + KEEP)
    return address.to(tl.pointer_type(tl.int8)) + first, tl.where(address == 0, 0, stop)


@triton.jit
def _load_bits(weights, at, stop):
    """Magnitude bits int32 of the weights at offsets `at`; 0 from `stop` on."""
    return tl.load(weights + at, mask=at < stop, other=0) & MAGNITUDE


@triton.jit
def _load_live(keep, masked, at, stop):
    """Whether those weights are there and live."""
    return (at < stop) & (tl.load(keep + at, mask=at < masked, other=-1) != 0)


@triton.jit(do_not_specialize=["rows"])
def count_live(table, rows, count, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Add the number of live weights of all rows to `count` int64 [1]."""
    _, row, tile = _find_row(table, rows, COLUMNS)
    first = tile * TILE
    rest = tl.load(row + NUMEL) - first
    if rest > 0:
        stop = tl.minimum(rest, TILE).to(tl.int32)
        keep, masked = _find_keep(row, first, stop)
        live = tl.zeros([BLOCK], tl.int32)
        for block in range(0, TILE, BLOCK):
            at = block + tl.arange(0, BLOCK)
            live += _load_live(keep, masked, at, stop).to(tl.int32)
        tl.atomic_add(count, tl.sum(live).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["rows", "low", "high", "room"])
def collect(
    table, rows, low, high, room, counts, keys, places, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """Look for live magnitudes in [low, high).

    Adds the live weights below, in it and not finite to `counts` int64 [3]; writes the bits less
    `low` of those in it to `keys` int32 [room] and their places, counted over all rows, to `places`
    int64 [room], in any order. What has no room is only counted.
    """
    _, row, tile = _find_row(table, rows, COLUMNS)
    first = tile * TILE
    rest = tl.load(row + NUMEL) - first
    if rest > 0:
        place = tl.load(row + BEFORE) + first
        stop = tl.minimum(rest, TILE).to(tl.int32)
        weights = _find_weights(row, first)
        keep, masked = _find_keep(row, first, stop)
        below = tl.zeros([BLOCK], tl.int32)
        wrong = tl.zeros([BLOCK], tl.int32)
        for block in range(0, TILE, BLOCK):
            at = block + tl.arange(0, BLOCK)
            bits = _load_bits(weights, at, stop)
            live = _load_live(keep, masked, at, stop)
            below += (live & (bits < low)).to(tl.int32)
            wrong += (live & (bits >= NON_FINITE)).to(tl.int32)
            found = (live & (bits >= low) & (bits < high)).to(tl.int32)
            reserved = tl.atomic_add(counts + 1, tl.sum(found).to(tl.int64), sem="relaxed")
            slot = reserved + (tl.cumsum(found) - 1)
            here = (found != 0) & (slot < room)
            tl.store(keys + slot, bits - low, mask=here)
            tl.store(places + slot, place + at, mask=here)
        tl.atomic_add(counts, tl.sum(below).to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 2, tl.sum(wrong).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["rows", "stride", "prefix", "prefix_shift", "shift", "digit_mask"])
def histogram(
    table,
    rows,
    stride,
    prefix,
    prefix_shift,
    shift,
    digit_mask,
    counts,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count every `stride`-th live weight's bits that continue `prefix` by their next digit.

    Bits continue it if (bits >> prefix_shift) == prefix; the digit is (bits >> shift) & digit_mask.
    Adds to `counts` int64 [BINS]. A tile is TILE samples.
    """
    _, row, tile = _find_row(table, rows, COLUMNS)
    first = tile * TILE * stride
    rest = tl.load(row + NUMEL) - first
    if rest > 0:
        stop = tl.minimum((rest + stride - 1) // stride, TILE).to(tl.int32)
        weights = _find_weights(row, first)
        keep, masked = _find_keep(row, first, stop)
        found = tl.zeros([BINS], tl.int32)
        for block in range(0, TILE, BLOCK):
            sample = block + tl.arange(0, BLOCK)
            at = sample.to(tl.int64) * stride
            bits = tl.load(weights + at, mask=sample < stop, other=0) & MAGNITUDE
            live = tl.load(keep + at, mask=sample < masked, other=-1) != 0
            counted = (sample < stop) & live & ((bits >> prefix_shift) == prefix)
            found += tl.histogram((bits >> shift) & digit_mask, BINS, mask=counted)
        bins = counts + tl.arange(0, BINS)
        tl.atomic_add(bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def _hash_positions(uid, index):
    """position_hash of distributed/hashing.py, as uint64."""
    x = (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15 + uid.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["rows"])
def prune(table, rows, counts, digests, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Prune the live weights up to each row's cut from its mask.

    Adds, for each row, the newly pruned weights that this rank owns to `counts` int64 [rows], and
    their position hashes to `digests` int64 [rows], modulo 2^64.
    """
    number, row, tile = _find_row(table, rows, PRUNE_COLUMNS)
    first = tile * TILE
    rest = tl.load(row + NUMEL) - first
    if rest > 0:
        mask = tl.load(row + MASK).to(tl.pointer_type(tl.int8)) + first
        cut = tl.load(row + CUT).to(tl.int32)
        tie = tl.load(row + TIE).to(tl.uint64)
        uid = tl.load(row + UID)
        start = tl.load(row + START) + first
        owned_start = tl.load(row + OWNED_START) - first
        owned_stop = tl.load(row + OWNED_STOP) - first
        stop = tl.minimum(rest, TILE).to(tl.int32)
        weights = _find_weights(row, first)
        keep, masked = _find_keep(row, first, stop)
        count = tl.zeros([BLOCK], tl.int32)
        digest = tl.zeros([BLOCK], tl.int64)
        for block in range(0, TILE, BLOCK):
            at = block + tl.arange(0, BLOCK)
            bits = _load_bits(weights, at, stop)
            live = _load_live(keep, masked, at, stop)
            kept = tl.load(mask + at, mask=at < stop, other=0) != 0
            hashes = _hash_positions(uid, start + at)
            goes = live & kept & ((bits < cut) | ((bits == cut) & (hashes <= tie)))
            tl.store(mask + at, tl.zeros([BLOCK], tl.int8), mask=goes)
            owned = goes & (at >= owned_start) & (at < owned_stop)
            count += owned.to(tl.int32)
            digest += tl.where(owned, hashes.to(tl.int64), 0)
        tl.atomic_add(counts + number, tl.sum(count).to(tl.int64), sem="relaxed")
        tl.atomic_add(digests + number, tl.sum(digest), sem="relaxed")
