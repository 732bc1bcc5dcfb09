// Vectors of floats, and exp and GELU on them.
//
// Tokens are the vector axis everywhere: a vector holds VL neighbouring tokens of one feature, so
// nothing here ever works across a vector. The compiler's generic vector types are used; the flags
// that the library is built with decide the instructions.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define SPARSEBERT_VL 16
#elif defined(__AVX2__)
#define SPARSEBERT_VL 8
#else
#define SPARSEBERT_VL 4
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

typedef float Vec __attribute__((vector_size(VL * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t IntVec __attribute__((vector_size(VL * 4), may_alias));

SPARSEBERT_INLINE Vec splat(float x) { return x - Vec{}; }
SPARSEBERT_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
SPARSEBERT_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
SPARSEBERT_INLINE Vec load_unaligned(const float* p) {
  return *reinterpret_cast<const UnalignedVec*>(p);
}
// Both give b where a is NaN.
SPARSEBERT_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// exp(x) for x <= 0, relative error 2e-7; 0 below -87.3, where floats lose precision. NaN stays NaN.
//
// exp(x) = 2^n exp(r), r = x - n ln 2. The polynomial is (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2,
// fitted for the least largest error by benchmarks/kernel_constants.py.
SPARSEBERT_INLINE Vec exp_negative(Vec x) {
  const Vec lowest = splat(-87.3f);
  const Vec clamped = x < lowest ? lowest : x;  // NaN passes: the comparison is false
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const Vec magic = splat(12582912.f);
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (clamped - n * 0.693145751953125f) - n * 1.42860677e-6f;
  Vec q = splat(1.3950478e-3f);
  q = q * r + 8.368882e-3f;
  q = q * r + 4.1666206e-2f;
  q = q * r + 1.6666518e-1f;
  q = q * r + 0.5f;
  const Vec e = q * r * r + r + 1.f;
  const IntVec exponent = (reinterpret_cast<IntVec>(shifted) << 23) + (127u << 23);
  const Vec result = e * reinterpret_cast<Vec>(exponent);
  return x < lowest ? Vec{} : result;
}

// x * Phi(x), the exact GELU; the error of erf is 2e-7.
//
// erf(z) = z g(z^2) on |z| <= 3.92, and within 3e-8 of 1 beyond. g is a polynomial in
// u = 2 z^2 / 3.92^2 - 1, which runs from -1 to 1: there its coefficients add up to 1.13 and lose no
// precision (benchmarks/kernel_constants.py).
SPARSEBERT_INLINE Vec gelu(Vec x) {
  Vec z = x * 0.70710678f;
  z = z < -3.92f ? splat(-3.92f) : z;
  z = z > 3.92f ? splat(3.92f) : z;
  const Vec u = z * z * (2.f / (3.92f * 3.92f)) - 1.f;
  Vec g = splat(-0.00077914662f);
  g = g * u + 0.00204871851f;
  g = g * u - 0.00160662003f;
  g = g * u + 0.00207794923f;
  g = g * u - 0.0073873424f;
  g = g * u + 0.0140159875f;
  g = g * u - 0.0201706085f;
  g = g * u + 0.0298142508f;
  g = g * u - 0.0433779731f;
  g = g * u + 0.058360476f;
  g = g * u - 0.074029617f;
  g = g * u + 0.0906020328f;
  g = g * u - 0.109178536f;
  g = g * u + 0.134084284f;
  g = g * u - 0.180108637f;
  g = g * u + 0.360736817f;
  const Vec half = x * 0.5f;
  return half * (g * z) + half;
}

}  // namespace sparsebert
