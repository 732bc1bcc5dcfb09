"""Weights -> the buffer that the kernel reads (kernel/packed.h), and back, bit for bit.

An entry is a weight that the kernel multiplies with: one that is not zero or, where a keep mask is
given, one that the mask keeps. What is no entry is a zero; some are -0.0 (a negative weight times a
mask of 0), and to give them back a bitmap of those signs stands behind the matrices that have any.

Weights that were rounded to int8 are packed as int8 or, for a kernel without int8, as the fp32 that
they stand for.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsebert.inference.layout import MATRICES, VECTORS, Dimensions
from sparsebert.inference.quantize import Int8Matrix

Array = np.ndarray[Any, np.dtype[Any]]

MAGIC = b"SBPACK02"
# 128 inputs of 64 tokens in fp32 are the 32 KiB of a first-level cache. With 192 the same model
# took 2 to 3 % more time on an Emerald Rapids, with 384 14 % more.
BLOCK_INPUTS = 128
# The same 32 KiB in bytes.
INT8_BLOCK_INPUTS = 512
_INT8_STEP = 4  # entries of one row that the kernel multiplies at once
_FP32_CODE, _INT8_CODE = 0, 1
# Chunks of rows that threads share; more would shorten the runs of equal counts.
_CHUNKS, _ROWS_PER_CHUNK = 4, 96
_INDEX_SCALE, _INT8_INDEX_SCALE, _ROW_SLACK = 32, 16, 4
_ALIGNMENT = 64
_HEADER = struct.Struct("<8sQQIIIIIfQIIQ48x")
_MATRIX = struct.Struct("<IIIIQQQQ")
_PART = np.dtype(
    [("runs", "u4"), ("rows", "u4"), ("entries", "u8"), ("run_at", "u8"), ("row_at", "u8")]
    + [("index_at", "u8"), ("value_at", "u8")]
)


class _Writer:
    """Appends arrays at aligned offsets to one buffer, so that nothing is held twice."""

    def __init__(self, start: int) -> None:
        self._buffer: Array = np.zeros(1 << 20, dtype=np.uint8)
        self._end = start

    def add(self, array: Array) -> int:
        at = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = at + array.nbytes
        if self._end > self._buffer.nbytes:
            # The system moves pages instead of copying them.
            self._buffer.resize(self._end + self._end // 4, refcheck=False)
        self._buffer[at : self._end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return at

    def build(self) -> Array:
        self._buffer.resize(-(-self._end // _ALIGNMENT) * _ALIGNMENT, refcheck=False)
        return self._buffer


def pack(
    dimensions: Dimensions,
    tensor: Callable[[int, str], torch.Tensor | Int8Matrix],
    *,
    keep_mask: Callable[[int, str], torch.Tensor | None] = lambda layer, name: None,
    compute_int8: bool = True,
) -> torch.Tensor:
    """The packed buffer (uint8).

    Args:
        dimensions: of the encoder.
        tensor: gives a layer's tensor by its number and its name within the layer: fp32 or, all
            matrices alike, rounded to int8.
        keep_mask: gives a matrix's mask (bool, True = entry), or None: what is not zero is. Rounded
            weights have none.
        compute_int8: pack rounded weights as int8; False packs the fp32 that they stand for.
    """
    writer = _Writer(_HEADER.size)
    layers = np.zeros((dimensions.layers, len(MATRICES) + len(VECTORS)), dtype="<u8")
    signs = np.zeros((dimensions.layers, len(MATRICES)), dtype="<u8")
    rounded = False
    for layer in range(dimensions.layers):
        for slot, names in enumerate(MATRICES.values()):
            found = [tensor(layer, name) for name in names]
            whole = [part for part in found if isinstance(part, torch.Tensor)]
            if not whole:
                rounded = True
                int8 = [part for part in found if isinstance(part, Int8Matrix)]
                layers[layer, slot] = _pack_rounded(writer, int8, compute_int8)
                continue
            dense = np.concatenate([part.numpy() for part in whole])
            masks = [keep_mask(layer, name) for name in names]
            is_entry = np.concatenate(
                [
                    part.numpy() != 0 if mask is None else mask.numpy()
                    for part, mask in zip(whole, masks, strict=True)
                ]
            )
            layers[layer, slot] = _pack_matrix(writer, dense, is_entry)
            negative = ~is_entry & np.signbit(dense)
            if negative.any():
                signs[layer, slot] = writer.add(
                    np.packbits(negative.reshape(-1), bitorder="little")
                )
        for slot, names in enumerate(VECTORS):
            vectors = [tensor(layer, name) for name in names]
            stacked = np.concatenate([v.numpy() for v in vectors if isinstance(v, torch.Tensor)])
            layers[layer, len(MATRICES) + slot] = writer.add(stacked)
    layers_at, signs_at = writer.add(layers), writer.add(signs)
    is_int8 = rounded and compute_int8
    buffer = writer.build()
    checksum = hashlib.sha256(buffer[_HEADER.size :].data).digest()[:8]
    header = _HEADER.pack(
        MAGIC,
        buffer.nbytes,
        int.from_bytes(checksum, "little"),
        dimensions.hidden,
        dimensions.inner,
        dimensions.heads,
        dimensions.layers,
        INT8_BLOCK_INPUTS if is_int8 else BLOCK_INPUTS,
        dimensions.layer_norm_eps,
        layers_at,
        _INT8_CODE if is_int8 else _FP32_CODE,
        rounded,
        signs_at,
    )
    buffer[: _HEADER.size] = np.frombuffer(header, dtype=np.uint8)
    return torch.from_numpy(buffer)


def _pack_rounded(writer: _Writer, parts: Sequence[Int8Matrix], compute_int8: bool) -> int:
    values = torch.cat([part.values for part in parts])
    scales = torch.cat([part.scales for part in parts])
    dense = values if compute_int8 else Int8Matrix(values, scales).dequantize()
    return _pack_matrix(writer, dense.numpy(), values.numpy() != 0, scales.numpy())


def _pack_matrix(
    writer: _Writer, dense: Array, is_entry: Array, scales: Array | None = None
) -> int:
    rows, inputs = dense.shape
    is_int8 = dense.dtype == np.int8
    block_inputs = INT8_BLOCK_INPUTS if is_int8 else BLOCK_INPUTS
    step, index_scale = (_INT8_STEP, _INT8_INDEX_SCALE) if is_int8 else (1, _INDEX_SCALE)
    blocks = -(-inputs // block_inputs)
    chunks = max(1, min(_CHUNKS, rows // _ROWS_PER_CHUNK))
    counts = np.stack(
        [
            np.count_nonzero(is_entry[:, b * block_inputs : (b + 1) * block_inputs], axis=1)
            for b in range(blocks)
        ]
    )  # [blocks, rows]
    cuts = _cut_rows(counts.sum(axis=0), chunks)
    parts = np.zeros((blocks, chunks), dtype=_PART)
    for b in range(blocks):
        block = slice(b * block_inputs, (b + 1) * block_inputs)
        steps = -(-counts[b] // step)
        for c in range(chunks):
            visits = np.arange(cuts[c], cuts[c + 1])
            if b not in (0, blocks - 1):  # every row is visited at the edges of a sum
                visits = visits[steps[visits] > 0]
            order = visits[np.argsort(steps[visits], kind="stable")]
            row, column = np.nonzero(is_entry[order, block])
            # Where each entry stands once a row's last step is filled up with weights of 0.
            filled, real = steps[order] * step, counts[b][order]
            place = np.arange(len(row)) + np.repeat(
                np.cumsum(filled - real) - (filled - real), real
            )
            index = np.zeros(filled.sum(), dtype="<u2")
            index[place] = column * index_scale
            value = np.zeros(len(index), dtype="i1" if is_int8 else "<f4")
            value[place] = dense[order[row], column + b * block_inputs]
            run_steps, run_rows = np.unique(steps[order], return_counts=True)
            parts[b, c] = (
                len(run_steps),
                len(order),
                len(index),
                writer.add(np.stack([run_steps, run_rows], axis=1).astype("<u4")),
                writer.add(np.append(order, [0] * _ROW_SLACK).astype("<u4")),
                writer.add(index),
                writer.add(value),
            )
    cuts_at, parts_at = writer.add(cuts.astype("<u4")), writer.add(parts)
    scales_at = begins_at = 0
    if scales is not None:
        scales_at = writer.add(scales.astype("<f4"))
    if is_int8:
        # The kernel adds 128 to every input; see product_int8.h.
        begins_at = writer.add((-128 * dense.sum(axis=1, dtype=np.int64)).astype("<i4"))
    matrix = _MATRIX.pack(rows, inputs, blocks, chunks, cuts_at, parts_at, scales_at, begins_at)
    return writer.add(np.frombuffer(matrix, dtype=np.uint8))


def _cut_rows(entries: Array, chunks: int) -> Array:
    """First row of each chunk and the end: about equal numbers of entries, no chunk empty."""
    below = np.concatenate([[0], np.cumsum(entries)])
    cuts: Array = np.searchsorted(below, below[-1] * np.arange(chunks + 1) / chunks)
    cuts[0], cuts[-1] = 0, len(entries)
    if (np.diff(cuts) < 1).any():  # hardly any entries: cut by rows
        cuts = np.arange(chunks + 1) * len(entries) // chunks
    return cuts


@dataclass(frozen=True)
class Unpacked:
    """One weight matrix of a layer as it was, and which of its weights are entries."""

    weight: torch.Tensor | Int8Matrix
    is_entry: torch.Tensor


class PackedReader:
    """Reads a buffer that the kernel has checked (library.check)."""

    def __init__(self, packed: torch.Tensor) -> None:
        self._data: Array = packed.numpy()
        head = _HEADER.unpack_from(self._data[: _HEADER.size].tobytes())
        _, _, self.checksum, hidden, inner, heads, layers, self._block, eps = head[:9]
        layers_at, code, rounded, signs_at = head[9:]
        self.dimensions = Dimensions(hidden, inner, heads, layers, eps)
        # Whether the weights were rounded to int8, and whether the kernel computes with them so.
        self.is_rounded, self.is_int8 = bool(rounded), code == _INT8_CODE
        self._layers = self._array(layers_at, layers * (len(MATRICES) + len(VECTORS)), "<u8")
        self._layers = self._layers.reshape(layers, -1)
        self._signs = self._array(signs_at, layers * len(MATRICES), "<u8").reshape(layers, -1)

    def _array(self, at: int, count: int, dtype: Any) -> Array:
        size = count * np.dtype(dtype).itemsize
        return self._data[at : at + size].view(dtype)

    def _values(self, part: Any) -> Array:
        dtype = "i1" if self.is_int8 else "<f4"
        return self._array(int(part["value_at"]), int(part["entries"]), dtype)

    def count_entries(self) -> tuple[int, int]:
        """(entries, weights) over all matrices."""
        entries = weights = 0
        for layer in range(self.dimensions.layers):
            for slot in range(len(MATRICES)):
                rows, inputs, parts, _ = self._matrix(layer, slot)
                weights += rows * inputs
                if self.is_int8:  # without what fills up a step
                    entries += sum(int(np.count_nonzero(self._values(p))) for p in parts.flat)
                else:
                    entries += int(parts["entries"].sum())
        return entries, weights

    def _matrix(self, layer: int, slot: int) -> tuple[int, int, Array, int]:
        at = int(self._layers[layer, slot])
        rows, inputs, blocks, chunks, _, parts_at, scales_at, _ = _MATRIX.unpack_from(
            self._data[at : at + _MATRIX.size].tobytes()
        )
        parts = self._array(parts_at, blocks * chunks, _PART).reshape(blocks, chunks)
        return rows, inputs, parts, scales_at

    def matrices(self, layer: int) -> dict[str, Unpacked]:
        """Every weight matrix of a layer, by its name within the layer."""
        found: dict[str, Unpacked] = {}
        for slot, names in enumerate(MATRICES.values()):
            rows, inputs, parts, scales_at = self._matrix(layer, slot)
            weight = np.zeros((rows, inputs), dtype=np.int8 if self.is_int8 else np.float32)
            is_entry = np.zeros((rows, inputs), dtype=bool)
            signs_at = int(self._signs[layer, slot])
            if signs_at:
                packed = self._array(signs_at, -(-rows * inputs // 8), np.uint8)
                bits = np.unpackbits(packed, count=rows * inputs, bitorder="little")
                weight[bits.reshape(rows, inputs).astype(bool)] = -0.0
            step, index_scale = (
                (_INT8_STEP, _INT8_INDEX_SCALE) if self.is_int8 else (1, _INDEX_SCALE)
            )
            for b, chunked in enumerate(parts):
                for part in chunked:
                    runs = self._array(int(part["run_at"]), 2 * int(part["runs"]), "<u4")
                    steps = np.repeat(*runs.reshape(-1, 2).T)
                    row = self._array(int(part["row_at"]), int(part["rows"]), "<u4")
                    row = np.repeat(row, steps * step)
                    column = self._array(int(part["index_at"]), int(part["entries"]), "<u2")
                    column = column // index_scale + b * self._block
                    value = self._values(part)
                    if self.is_int8:
                        real = value != 0
                        row, column, value = row[real], column[real], value[real]
                    weight[row, column] = value
                    is_entry[row, column] = True
            unpacked = torch.from_numpy(weight)
            if self.is_rounded:
                scales = torch.from_numpy(self._array(scales_at, rows, "<f4").copy())
                found |= _split_rounded(names, unpacked, scales)
            else:
                found |= _split(names, unpacked, torch.from_numpy(is_entry))
        return found

    def vectors(self, layer: int) -> dict[str, torch.Tensor]:
        """Every bias and LayerNorm tensor of a layer, by its name within the layer."""
        found: dict[str, torch.Tensor] = {}
        for slot, names in enumerate(VECTORS):
            lengths = [self.dimensions.shape(name)[0] for name in names]
            at = int(self._layers[layer, len(MATRICES) + slot])
            stacked = torch.from_numpy(self._array(at, sum(lengths), "<f4").copy())
            found |= dict(
                zip(names, (part.clone() for part in torch.split(stacked, lengths)), strict=True)
            )
        return found

    def tensors(self, layer: int) -> Mapping[str, torch.Tensor]:
        """Every tensor of a layer, dense; not of rounded weights."""
        found = self.vectors(layer)
        for name, matrix in self.matrices(layer).items():
            assert isinstance(matrix.weight, torch.Tensor)
            found[name] = matrix.weight
        return found


def _split(
    names: Sequence[str], weight: torch.Tensor, is_entry: torch.Tensor
) -> dict[str, Unpacked]:
    if len(names) == 1:
        return {names[0]: Unpacked(weight, is_entry)}
    pairs = zip(weight.chunk(len(names)), is_entry.chunk(len(names)), strict=True)
    return {name: Unpacked(w.clone(), e.clone()) for name, (w, e) in zip(names, pairs, strict=True)}


def _split_rounded(
    names: Sequence[str], weight: torch.Tensor, scales: torch.Tensor
) -> dict[str, Unpacked]:
    if weight.dtype != torch.int8:  # the fp32 that they stand for: exact to a part in 2^23
        divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
        weight = (weight / divisors[:, None]).round().to(torch.int8)
    pairs = zip(weight.chunk(len(names)), scales.chunk(len(names)), strict=True)
    return {
        name: Unpacked(Int8Matrix(w.clone(), s.clone()), w != 0)
        for name, (w, s) in zip(names, pairs, strict=True)
    }
