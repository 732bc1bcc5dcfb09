// The packed weights: one buffer without pointers, made by packing.py, in the machine's byte order.
//
// A weight matrix [rows, inputs] is cut into blocks of `block_inputs` inputs, so that a block's
// activations stay in the first-level cache, and into `chunks` of neighbouring rows, so that threads
// can share it. A part is one block of one chunk. It holds its rows in the order of how many entries
// they have there, as runs of equal count: the inner loop's length rarely changes and nothing is
// padded. Rows without an entry are left out, except in the first and in the last block, where every
// row is visited: there the sum begins and ends.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace sparsebert {

struct Header {
  char magic[8];
  uint64_t bytes;       // of the whole buffer
  uint64_t checksum;    // of what follows the header; tells one buffer from another
  uint32_t hidden, inner, heads, layers;
  uint32_t block_inputs;
  float layer_norm_eps;
  uint64_t layer_table;  // offset of Layer[layers]
  uint32_t values;       // FP32, INT8
  uint32_t rounded;      // read by packing.py only, and so is what follows
  uint64_t reserved[7];
};

enum { FP32, INT8 };

enum { QKV, OUT, UP, DOWN, MATRICES };
enum { QKV_BIAS, OUT_BIAS, NORM1_WEIGHT, NORM1_BIAS, UP_BIAS, DOWN_BIAS, NORM2_WEIGHT, NORM2_BIAS, VECTORS };

struct Layer {
  uint64_t matrix[MATRICES];  // offsets of Matrix
  uint64_t vector[VECTORS];   // offsets of floats
};

struct Matrix {
  uint32_t rows, inputs, blocks, chunks;
  uint64_t cuts;   // offset of uint32[chunks + 1]: the first row of each chunk
  uint64_t parts;  // offset of Part[blocks][chunks]
  // Of weights that were rounded to int8: offsets of float[rows], what a row's integers are multiplied
  // by, and of int32[rows], -128 times their sum.
  uint64_t scales, begins;
};

struct Part {
  uint32_t runs, rows;
  uint64_t entries;  // with those that fill up a step
  uint64_t run_at, row_at, index_at, value_at;
};

struct Run {
  uint32_t count;  // of steps a row
  uint32_t rows;
};

constexpr uint32_t INT8_STEP = 4;

// An entry's input within its block, times 32: with T tokens a tile its activations lie at
// index * T / 8 bytes, which is a shift or, for powers of two, a mode of addressing.
constexpr uint32_t INDEX_SCALE = 32;
// The same of int8, times the fewest tokens of a tile: index * T / 16 bytes.
constexpr uint32_t INT8_INDEX_SCALE = 16;
// Sums of 255 * 127 * inputs fit into int32.
constexpr uint32_t MAX_INT8_INPUTS = 65536;
// Readable bytes behind the last row number: the next rows' sums are prefetched.
constexpr uint64_t ROW_SLACK = 16;

template <typename T>
inline const T* at(const void* packed, uint64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(packed) + offset);
}

// Where a buffer breaks its own rules, as the number of the rule; 0 if it keeps them all.
//
// After this the encoder can read nothing outside the buffer and write nothing outside its scratch,
// whatever the bytes are.
inline int find_fault(const void* packed, uint64_t bytes) {
  const auto fits = [bytes](uint64_t offset, uint64_t count, uint64_t size) {
    return offset % 8 == 0 && offset <= bytes && count <= (bytes - offset) / size;
  };
  if (reinterpret_cast<uintptr_t>(packed) % 8 != 0) return 1;
  if (bytes < sizeof(Header)) return 2;
  const Header& h = *at<Header>(packed, 0);
  if (memcmp(h.magic, "SBPACK02", 8) != 0) return 3;
  if (h.bytes != bytes) return 4;
  const uint32_t limit = 1u << 24;
  if (h.hidden == 0 || h.hidden > limit || h.inner == 0 || h.inner > limit) return 5;
  if (h.heads == 0 || h.hidden % h.heads != 0) return 6;
  if (!fits(h.layer_table, h.layers, sizeof(Layer))) return 8;
  if (h.values != FP32 && h.values != INT8) return 28;
  const bool int8 = h.values == INT8;
  if (int8 && !HAS_INT8) return 31;
  if (int8 && (h.hidden > MAX_INT8_INPUTS || h.inner > MAX_INT8_INPUTS)) return 29;
  const uint32_t step = int8 ? INT8_STEP : 1, index_scale = int8 ? INT8_INDEX_SCALE : INDEX_SCALE;
  if (h.block_inputs == 0 || h.block_inputs > 65535 / index_scale) return 7;  // an index has 16 bits
  const uint64_t rows_of[MATRICES] = {3ull * h.hidden, h.hidden, h.inner, h.hidden};
  const uint64_t inputs_of[MATRICES] = {h.hidden, h.hidden, h.hidden, h.inner};
  const uint64_t length_of[VECTORS] = {3ull * h.hidden, h.hidden, h.hidden, h.hidden,
                                       h.inner,         h.hidden, h.hidden, h.hidden};
  for (uint32_t l = 0; l < h.layers; l++) {
    const Layer& layer = at<Layer>(packed, h.layer_table)[l];
    for (int v = 0; v < VECTORS; v++)
      if (!fits(layer.vector[v], length_of[v], 4)) return 9;
    for (int k = 0; k < MATRICES; k++) {
      if (!fits(layer.matrix[k], 1, sizeof(Matrix))) return 10;
      const Matrix& m = *at<Matrix>(packed, layer.matrix[k]);
      if (m.rows != rows_of[k] || m.inputs != inputs_of[k]) return 11;
      if (m.blocks != (m.inputs + h.block_inputs - 1) / h.block_inputs) return 12;
      if (m.chunks == 0 || m.chunks > m.rows) return 13;
      if (!fits(m.cuts, m.chunks + 1ull, 4)) return 14;
      if (!fits(m.parts, uint64_t(m.blocks) * m.chunks, sizeof(Part))) return 15;
      if (int8 && !(fits(m.scales, m.rows, 4) && fits(m.begins, m.rows, 4))) return 30;
      const uint32_t* cuts = at<uint32_t>(packed, m.cuts);
      if (cuts[0] != 0 || cuts[m.chunks] != m.rows) return 16;
      for (uint32_t c = 0; c < m.chunks; c++)
        if (cuts[c] > cuts[c + 1]) return 17;
      for (uint32_t b = 0; b < m.blocks; b++)
        for (uint32_t c = 0; c < m.chunks; c++) {
          const Part& p = at<Part>(packed, m.parts)[uint64_t(b) * m.chunks + c];
          if (!fits(p.run_at, p.runs, sizeof(Run))) return 18;
          if (!fits(p.row_at, p.rows + ROW_SLACK / 4, 4)) return 19;
          if (!fits(p.index_at, p.entries, 2)) return 20;
          if (!fits(p.value_at, p.entries, int8 ? 1 : 4)) return 21;
          const Run* runs = at<Run>(packed, p.run_at);
          uint64_t rows = 0, steps = 0;
          for (uint32_t r = 0; r < p.runs; r++) {
            rows += runs[r].rows;
            steps += uint64_t(runs[r].count) * runs[r].rows;
            if (rows > p.rows || steps > p.entries / step) return 22;
          }
          if (rows != p.rows || steps * step != p.entries) return 23;
          const bool is_edge = b == 0 || b + 1 == m.blocks;
          if (is_edge && p.rows != cuts[c + 1] - cuts[c]) return 24;
          const uint32_t* row = at<uint32_t>(packed, p.row_at);
          for (uint32_t r = 0; r < p.rows; r++)
            if (row[r] < cuts[c] || row[r] >= cuts[c + 1]) return 25;
          for (uint32_t r = 0; r < ROW_SLACK / 4; r++)
            if (row[p.rows + r] >= m.rows) return 27;
          const uint64_t end = uint64_t(b + 1) * h.block_inputs;
          const uint32_t width =
              static_cast<uint32_t>((end < m.inputs ? end : m.inputs) - uint64_t(b) * h.block_inputs);
          const uint16_t* index = at<uint16_t>(packed, p.index_at);
          for (uint64_t i = 0; i < p.entries; i++)
            if (index[i] % index_scale != 0 || index[i] / index_scale >= width) return 26;
        }
    }
  }
  return 0;
}

}  // namespace sparsebert
