// Vectors of floats, and exp and GELU on them.
//
// Tokens are the vector axis everywhere: a vector holds VL neighbouring tokens of one feature, so
// nothing here ever works across a vector. The compiler's generic vector types are used; the flags
// that the library is built with decide the instructions.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define SPARSEBERT_VL 16
#elif defined(__AVX2__)
#define SPARSEBERT_VL 8
#else
#define SPARSEBERT_VL 4
#endif

// Dot products of bytes (VNNI).
#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#define SPARSEBERT_INT8 1
#else
#define SPARSEBERT_INT8 0
#endif

#define SPARSEBERT_INLINE static inline __attribute__((always_inline))

namespace sparsebert {

constexpr int VL = SPARSEBERT_VL;
// A tile is a group of tokens that is computed together. Its width is a multiple of LANE_STEP.
constexpr int LANE_STEP = 16;
// The widest tile is what the registers hold: SSE2 has 16 of 4 floats.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr int MAX_LANES = 64;
#else
constexpr int MAX_LANES = 32;
#endif
constexpr bool HAS_INT8 = SPARSEBERT_INT8;
// The widest tile of int8: one register holds a byte of each token.
constexpr int MAX_INT8_LANES = VL == 16 ? 64 : 32;

typedef float Vec __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t IntVec __attribute__((vector_size(VL * 4), may_alias));

SPARSEBERT_INLINE Vec splat(float x) { return x - Vec{}; }
SPARSEBERT_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
SPARSEBERT_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
SPARSEBERT_INLINE IntVec magnitude_bits(const float* p) {
  return *reinterpret_cast<const IntVec*>(p) & 0x7fffffffu;
}
// int32 in the place of floats, as floats.
SPARSEBERT_INLINE Vec to_floats(const float* p) {
  typedef int32_t Ints __attribute__((vector_size(VL * 4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Ints*>(p), Vec);
}
// Both give b where one of them is NaN. GCC makes two instructions of the comparison, because an
// instruction for the larger of two does not fit it in every case of -0.0; x86's does exactly this.
SPARSEBERT_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
SPARSEBERT_INLINE Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

// 2^x for x <= 0, relative error 2e-7; below -126, where floats lose precision, it stays 1e-38. NaN
// stays NaN.
//
// 2^x = 2^n 2^f with n the nearest integer; the polynomial is 2^f on |f| <= 1/2, fitted for the least
// largest relative error by benchmarks/kernel_constants.py.
SPARSEBERT_INLINE Vec exp2_negative(Vec x) {
  x = larger(splat(-126.f), x);
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; with 127 more it is
  // the exponent's field.
  const Vec magic = splat(12582912.f + 127.f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = splat(0.00132764666f);
  p = p * f + 0.00967554189f;
  p = p * f + 0.0555071346f;
  p = p * f + 0.240221202f;
  p = p * f + 0.693146944f;
  p = p * f + 1.00000012f;
  return p * reinterpret_cast<Vec>(reinterpret_cast<IntVec>(shifted) << 23);
}

// x * Phi(x) = x / 2 (1 + erf(z)) with z = x / sqrt(2).
//
// erf(z) = z g(z^2) on |z| <= edge, and is taken for constant beyond. g is a polynomial in
// u = 2 z^2 / edge^2 - 1, which runs from -1 to 1: there its coefficients lose no precision. They stand
// highest first (benchmarks/kernel_constants.py).
template <int N>
SPARSEBERT_INLINE Vec gelu_by(Vec x, float edge, const float (&coefficients)[N]) {
  Vec z = x * 0.70710678f;
  z = smaller(splat(edge), larger(splat(-edge), z));  // NaN passes
  const Vec u = z * z * (2.f / (edge * edge)) - 1.f;
  Vec g = splat(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; i++) g = g * u + coefficients[i];
  const Vec half = x * 0.5f;
  return half * (g * z) + half;
}

// The exact GELU; the error of erf is 2e-7.
SPARSEBERT_INLINE Vec gelu(Vec x) {
  constexpr float G[] = {-0.00077914662f, 0.00204871851f, -0.00160662003f, 0.00207794923f,
                         -0.0073873424f,  0.0140159875f,  -0.0201706085f,  0.0298142508f,
                         -0.0433779731f,  0.058360476f,   -0.074029617f,   0.0906020328f,
                         -0.109178536f,   0.134084284f,   -0.180108637f,   0.360736817f};
  return gelu_by(x, 3.92f, G);
}

// Within 2e-4, in half the time: for results that int8 rounds to steps of some 1e-2.
SPARSEBERT_INLINE Vec coarse_gelu(Vec x) {
  constexpr float G[] = {0.0159879196f, -0.0446476117f, 0.066189155f, -0.099315688f,
                         0.156722903f,  -0.240339071f,  0.50254941f};
  return gelu_by(x, 2.8f, G);
}

}  // namespace sparsebert
