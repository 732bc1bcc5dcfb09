// The sparse product: Y = W X + bias (+ residual), then GELU where it is asked for.
//
// X is [inputs][T tokens], Y is [rows][T tokens]. One row's T sums stay in registers while its
// entries of a block are walked: an entry costs one index, one broadcast weight and T / VL multiply-
// adds whose second operand is memory. The loads are the limit, not the arithmetic.
#pragma once
#include "packed.h"
#include "vectors.h"

namespace sparsebert {

// poison [T]: 0 for a token whose inputs are all finite, else NaN. A dense product multiplies zero
// weights too, and 0 * infinity is NaN; added to each sum, this gives what the dense product gives.
template <int TV>
static void find_poison(const float* x, uint32_t inputs, float* poison) {
  Vec found[TV];
  for (int t = 0; t < TV; t++) found[t] = Vec{};
  for (uint32_t k = 0; k < inputs; k++)
    for (int t = 0; t < TV; t++) found[t] += load(x + (uint64_t(k) * TV + t) * VL) * 0.f;
  for (int t = 0; t < TV; t++) store(poison + t * VL, found[t]);
}

template <int TV, bool FIRST, bool GELU>
static __attribute__((noinline)) void multiply_part(const void* packed, const Part& part, const float* x, const float* bias,
                          const float* residual, const float* poison, float* y) {
  constexpr int T = TV * VL;
  const char* base = reinterpret_cast<const char*>(x);
  const uint16_t* index = at<uint16_t>(packed, part.index_at);
  const float* value = at<float>(packed, part.value_at);
  const uint32_t* row = at<uint32_t>(packed, part.row_at);
  const Run* run = at<Run>(packed, part.run_at);
  for (const Run* end = run + part.runs; run != end; run++) {
    const uint32_t count = run->count;
    for (uint32_t r = run->rows; r > 0; r--, row++) {
      float* out = y + uint64_t(*row) * T;
      // Rows come in no order that the hardware can foresee.
      const char* soon = reinterpret_cast<const char*>(y) + uint64_t(row[3]) * (T * 4);
      for (int line = 0; line < T * 4; line += 64) __builtin_prefetch(soon + line, 1);
      Vec sum[TV];
      if (FIRST) {
        const Vec begin = splat(bias[*row]);
        for (int t = 0; t < TV; t++) sum[t] = begin + load(poison + t * VL);
        if (residual)
          for (int t = 0; t < TV; t++) sum[t] += load(residual + uint64_t(*row) * T + t * VL);
      } else {
        for (int t = 0; t < TV; t++) sum[t] = load(out + t * VL);
      }
#pragma GCC unroll 4
      for (uint32_t i = 0; i < count; i++) {
        const float* from = reinterpret_cast<const float*>(base + uint32_t(index[i]) * (T / 8));
        const float weight = value[i];
        for (int t = 0; t < TV; t++) sum[t] += load(from + t * VL) * weight;
      }
      index += count;
      value += count;
      for (int t = 0; t < TV; t++) store(out + t * VL, GELU ? gelu(sum[t]) : sum[t]);
    }
  }
}

// Rows of the chunks [chunk, chunk_end) of one tile.
template <int TV>
static void multiply(const void* packed, const Matrix& m, uint32_t block_inputs, uint32_t chunk,
                     uint32_t chunk_end, const float* x, const float* poison, const float* bias,
                     const float* residual, bool with_gelu, float* y) {
  const Part* parts = at<Part>(packed, m.parts);
  for (uint32_t b = 0; b < m.blocks; b++)
    for (uint32_t c = chunk; c < chunk_end; c++) {
      const Part& part = parts[uint64_t(b) * m.chunks + c];
      const float* from = x + uint64_t(b) * block_inputs * (TV * VL);
      const bool ends = with_gelu && b + 1 == m.blocks;
      if (b == 0 && ends)
        multiply_part<TV, true, true>(packed, part, from, bias, residual, poison, y);
      else if (b == 0)
        multiply_part<TV, true, false>(packed, part, from, bias, residual, poison, y);
      else if (ends)
        multiply_part<TV, false, true>(packed, part, from, bias, residual, poison, y);
      else
        multiply_part<TV, false, false>(packed, part, from, bias, residual, poison, y);
    }
}

}  // namespace sparsebert
