// Tokens to tiles and back, LayerNorm on a tile, and the choice of a tile's width at run time.
#pragma once
#include <cmath>

#include "vectors.h"

namespace sparsebert {

// Calls f with the number of vectors of a tile of `lanes` tokens as a constant.
template <typename F>
SPARSEBERT_INLINE void with_width(int lanes, F&& f) {
  constexpr int STEP = LANE_STEP / VL;
  if constexpr (MAX_LANES == 64) {
    if (lanes == 64) return f(std::integral_constant<int, 4 * STEP>());
    if (lanes == 48) return f(std::integral_constant<int, 3 * STEP>());
  }
  if (lanes == 32) return f(std::integral_constant<int, 2 * STEP>());
  f(std::integral_constant<int, STEP>());
}

#if SPARSEBERT_INT8
// Calls f with the number of tokens of an int8 tile as a constant.
template <typename F>
SPARSEBERT_INLINE void with_bytes(int lanes, F&& f) {
  if constexpr (MAX_INT8_LANES == 64)
    if (lanes == 64) return f(std::integral_constant<int, 64>());
  if (lanes == 32) return f(std::integral_constant<int, 32>());
  f(std::integral_constant<int, 16>());
}
#endif

// The rows rows[0 .. tokens) of x [..][features] -> [features][lanes]; lanes without a token are 0.
static void to_tile(const float* x, const int64_t* rows, int tokens, int lanes, int64_t features,
                    float* tile) {
  constexpr int64_t STRIP = 16;  // a strip of the tile stays in the cache while the tokens pass
  for (int64_t k = 0; k < features; k += STRIP) {
    const int64_t end = k + STRIP < features ? k + STRIP : features;
    for (int t = 0; t < lanes; t++)
      for (int64_t i = k; i < end; i++)
        tile[i * lanes + t] = t < tokens ? x[rows[t] * features + i] : 0.f;
  }
}

static void from_tile(const float* tile, const int64_t* rows, int tokens, int lanes, int64_t features,
                      float* y) {
  constexpr int64_t STRIP = 16;
  for (int64_t k = 0; k < features; k += STRIP) {
    const int64_t end = k + STRIP < features ? k + STRIP : features;
    for (int t = 0; t < tokens; t++)
      for (int64_t i = k; i < end; i++) y[rows[t] * features + i] = tile[i * lanes + t];
  }
}

// In place, over the features of each token of the vectors [first, last) of a tile. Two passes over
// the values: the mean is out of them before they are squared.
template <int TV>
static void layer_norm_vectors(float* tile, int64_t features, int stride, const float* weight,
                               const float* bias, float eps) {
  Vec mean[TV], inverse[TV];
  for (int t = 0; t < TV; t++) mean[t] = inverse[t] = Vec{};
  for (int64_t k = 0; k < features; k++)
    for (int t = 0; t < TV; t++) mean[t] += load(tile + k * stride + t * VL);
  for (int t = 0; t < TV; t++) mean[t] = mean[t] / static_cast<float>(features);
  for (int64_t k = 0; k < features; k++)
    for (int t = 0; t < TV; t++) {
      const Vec d = load(tile + k * stride + t * VL) - mean[t];
      inverse[t] += d * d;
    }
  for (int t = 0; t < TV; t++) {
    const Vec variance = inverse[t] / static_cast<float>(features) + eps;
    for (int i = 0; i < VL; i++) inverse[t][i] = 1.f / std::sqrt(variance[i]);
  }
  for (int64_t k = 0; k < features; k++) {
    const Vec w = splat(weight[k]), b = splat(bias[k]);
    for (int t = 0; t < TV; t++) {
      float* p = tile + k * stride + t * VL;
      store(p, (load(p) - mean[t]) * inverse[t] * w + b);
    }
  }
}

// The share `part` of `parts` of a tile's tokens; all of them for 0 of 1.
static void layer_norm(float* tile, int lanes, int64_t features, const float* weight,
                       const float* bias, float eps, int part, int parts) {
  if (parts == 1) {
    with_width(lanes, [&](auto width) {
      layer_norm_vectors<width()>(tile, features, lanes, weight, bias, eps);
    });
    return;
  }
  const int vectors = lanes / VL;
  for (int v = vectors * part / parts; v < vectors * (part + 1) / parts; v++)
    layer_norm_vectors<1>(tile + v * VL, features, lanes, weight, bias, eps);
}

}  // namespace sparsebert
