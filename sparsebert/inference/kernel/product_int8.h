// The sparse product with int8 weights: y = scale(row) * scale(token) * (W X) + bias (+ residual).
//
// A token's inputs are rounded to 255 steps of its own largest magnitude, a row's weights to 255 of
// its own (quantize.py). Sums of products are exact in int32. `vpdpbusd` multiplies four unsigned
// bytes by four signed ones a lane, so 128 is added to each input and 128 * (the row's sum of
// weights) is taken off each sum.
//
// X is [inputs][T tokens] bytes. A row's entries come in steps of four: four unrelated columns are
// interleaved into four vectors of (T / 4) x 4 bytes by eight unpack instructions, which work in lanes
// of 16 bytes. `quantize` orders the tokens so that the sums come out in the tokens' own order:
// lane L's byte 4 j + i is token (T / 4) j + 4 L + i.
#pragma once
#include "packed.h"
#include "vectors.h"

namespace sparsebert {

#if SPARSEBERT_INT8

// One byte of each of T tokens, and the instructions on them.
template <int T>
struct Bytes;

#if defined(__AVX512VNNI__)
#define SPARSEBERT_DOT(size) _mm##size##_dpbusd_epi32
#else
#define SPARSEBERT_DOT(size) _mm##size##_dpbusd_avx_epi32
#endif

#define SPARSEBERT_BYTES(T, size, bits, Register)                                                    \
  template <>                                                                                        \
  struct Bytes<T> {                                                                                  \
    typedef Register Reg;                                                                            \
    SPARSEBERT_INLINE Reg load(const void* p) { return _mm##size##_load_si##bits((const Reg*)p); }   \
    SPARSEBERT_INLINE void store(void* p, Reg a) { _mm##size##_store_si##bits((Reg*)p, a); }         \
    SPARSEBERT_INLINE Reg splat(int32_t a) { return _mm##size##_set1_epi32(a); }                     \
    SPARSEBERT_INLINE Reg low8(Reg a, Reg b) { return _mm##size##_unpacklo_epi8(a, b); }             \
    SPARSEBERT_INLINE Reg high8(Reg a, Reg b) { return _mm##size##_unpackhi_epi8(a, b); }            \
    SPARSEBERT_INLINE Reg low16(Reg a, Reg b) { return _mm##size##_unpacklo_epi16(a, b); }           \
    SPARSEBERT_INLINE Reg high16(Reg a, Reg b) { return _mm##size##_unpackhi_epi16(a, b); }          \
    SPARSEBERT_INLINE Reg dot(Reg sum, Reg x, Reg w) { return SPARSEBERT_DOT(size)(sum, x, w); }     \
    SPARSEBERT_INLINE Reg pack16(Reg a, Reg b) { return _mm##size##_packs_epi32(a, b); }             \
    SPARSEBERT_INLINE Reg pack8(Reg a, Reg b) { return _mm##size##_packs_epi16(a, b); }              \
    /* T / 4 tokens, each times its factor, to the nearest integers. */                              \
    SPARSEBERT_INLINE Reg round(const float* x, const float* factor) {                               \
      return _mm##size##_cvtps_epi32(                                                                \
          _mm##size##_mul_ps(_mm##size##_load_ps(x), _mm##size##_load_ps(factor)));                  \
    }                                                                                                \
  };
SPARSEBERT_BYTES(16, , 128, __m128i)
SPARSEBERT_BYTES(32, 256, 256, __m256i)
#if defined(__AVX512VNNI__)
SPARSEBERT_BYTES(64, 512, 512, __m512i)
#endif
#undef SPARSEBERT_BYTES
#undef SPARSEBERT_DOT

// Rounds a tile [inputs][T] of floats to bytes; a token's scale gives the floats back. An input that is
// not finite makes its token's scale infinity or NaN, of which LayerNorm makes NaN everywhere.
template <int T>
static void quantize(const float* x, uint32_t inputs, uint8_t* bytes, float* scales) {
  constexpr int TV = T / VL;
  // As integers, bits of magnitudes have the order of the numbers, infinity and NaN above all others.
  IntVec bits[TV];
  for (int t = 0; t < TV; t++) bits[t] = IntVec{};
  for (uint32_t k = 0; k < inputs; k++)
    for (int t = 0; t < TV; t++) {
      const IntVec v = magnitude_bits(x + uint64_t(k) * T + t * VL);
      bits[t] = v > bits[t] ? v : bits[t];
    }
  alignas(64) float factors[T];
  for (int t = 0; t < TV; t++) {
    const Vec most = reinterpret_cast<Vec>(bits[t]);
    store(scales + t * VL, most * (1.f / 127.f));
    store(factors + t * VL, most > 0.f ? 127.f / most : Vec{});
  }
  typedef Bytes<T> B;
  const typename B::Reg flip = B::splat(static_cast<int32_t>(0x80808080));
  for (uint32_t k = 0; k < inputs; k++) {
    const float* from = x + uint64_t(k) * T;
    const auto quarter = [&](int j) { return B::round(from + j * (T / 4), factors + j * (T / 4)); };
    const typename B::Reg packed = B::pack8(B::pack16(quarter(0), quarter(1)), B::pack16(quarter(2), quarter(3)));
    B::store(bytes + uint64_t(k) * T, packed ^ flip);
  }
}

template <int T, bool FIRST, bool LAST, bool GELU>
static __attribute__((noinline)) void multiply_part_int8(const void* packed, const Matrix& m, const Part& part,
                               const uint8_t* x, const float* token_scales, const float* bias,
                               const float* residual, float* y) {
  typedef Bytes<T> B;
  typedef typename B::Reg Reg;
  const uint16_t* index = at<uint16_t>(packed, part.index_at);
  const char* value = at<char>(packed, part.value_at);
  const uint32_t* row = at<uint32_t>(packed, part.row_at);
  const int32_t* begin = at<int32_t>(packed, m.begins);
  const float* row_scales = at<float>(packed, m.scales);
  const Run* run = at<Run>(packed, part.run_at);
  for (const Run* end = run + part.runs; run != end; run++) {
    const uint32_t steps = run->count;
    for (uint32_t r = run->rows; r > 0; r--, row++) {
      float* out = y + uint64_t(*row) * T;
      const char* soon = reinterpret_cast<const char*>(y) + uint64_t(row[3]) * (T * 4);
      for (int line = 0; line < T * 4; line += 64) __builtin_prefetch(soon + line, 1);
      Reg sum[4];
      for (int j = 0; j < 4; j++) sum[j] = FIRST ? B::splat(begin[*row]) : B::load(out + j * (T / 4));
#pragma GCC unroll 2
      for (uint32_t i = 0; i < steps; i++) {
        const auto column = [&](int c) { return B::load(x + uint32_t(index[c]) * (T / INT8_INDEX_SCALE)); };
        int32_t weights;
        memcpy(&weights, value, 4);
        const Reg w = B::splat(weights);
        const Reg a = column(0), b = column(1), c = column(2), d = column(3);
        const Reg ab0 = B::low8(a, b), ab1 = B::high8(a, b), cd0 = B::low8(c, d), cd1 = B::high8(c, d);
        sum[0] = B::dot(sum[0], B::low16(ab0, cd0), w);
        sum[1] = B::dot(sum[1], B::high16(ab0, cd0), w);
        sum[2] = B::dot(sum[2], B::low16(ab1, cd1), w);
        sum[3] = B::dot(sum[3], B::high16(ab1, cd1), w);
        index += INT8_STEP;
        value += INT8_STEP;
      }
      for (int j = 0; j < 4; j++) B::store(out + j * (T / 4), sum[j]);
      if (LAST) {
        const Vec scale = splat(row_scales[*row]), shift = splat(bias[*row]);
        for (int t = 0; t < T / VL; t++) {
          Vec v = to_floats(out + t * VL) * (load(token_scales + t * VL) * scale) + shift;
          if (residual) v += load(residual + uint64_t(*row) * T + t * VL);
          store(out + t * VL, GELU ? coarse_gelu(v) : v);
        }
      }
    }
  }
}

// Rows of the chunks [chunk, chunk_end) of one tile.
template <int T>
static void multiply_int8(const void* packed, const Matrix& m, uint32_t block_inputs, uint32_t chunk,
                          uint32_t chunk_end, const uint8_t* x, const float* token_scales,
                          const float* bias, const float* residual, bool with_gelu, float* y) {
  const Part* parts = at<Part>(packed, m.parts);
  for (uint32_t b = 0; b < m.blocks; b++)
    for (uint32_t c = chunk; c < chunk_end; c++) {
      const Part& part = parts[uint64_t(b) * m.chunks + c];
      const uint8_t* from = x + uint64_t(b) * block_inputs * T;
      const auto run = [&](auto first, auto last, auto gelu) {
        multiply_part_int8<T, first(), last(), gelu()>(packed, m, part, from, token_scales, bias, residual, y);
      };
      const std::true_type yes;
      const std::false_type no;
      const bool first = b == 0, last = b + 1 == m.blocks;
      if (last && with_gelu)
        first ? run(yes, yes, yes) : run(no, yes, yes);
      else if (last)
        first ? run(yes, yes, no) : run(no, yes, no);
      else
        first ? run(yes, no, no) : run(no, no, no);
    }
}

#endif  // SPARSEBERT_INT8

}  // namespace sparsebert
