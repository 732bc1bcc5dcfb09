// Attention of one head over one sequence, on tiles.
//
// For each tile of queries: scores [keys][queries] = K' Q, softmax down the keys of each lane, then
// context [head features][queries] = V scores. The context replaces the queries, which nobody needs
// afterwards.
#pragma once
#include "tiles.h"
#include "vectors.h"

namespace sparsebert {

// Where a head's queries, keys and values of one tile are: [head features][lanes] each.
struct HeadTile {
  float *q, *k, *v;
  int lanes, tokens;
};

// What is added to the scores of one head: null, one number a key, or one a query and key.
struct Mask {
  const float* data = nullptr;
  int64_t query_stride = 0, key_stride = 0;
  const int64_t* rows = nullptr;  // of the tokens, in the caller's batch,
  int64_t first = 0;              // where the sequence begins with this one

  float at(int64_t query, int64_t key) const {
    return data[(rows[query] - first) * query_stride + (rows[key] - first) * key_stride];
  }
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int GEMM_ROWS = 6, GEMM_VECTORS = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int GEMM_ROWS = 6, GEMM_VECTORS = 2;  // 12 of 16
#else
constexpr int GEMM_ROWS = 4, GEMM_VECTORS = 2;  // 8 of 16: SSE2 needs copies
#endif

// C[r][i] (+)= sum over k of A[r * ar + k * ak] * B[k * lanes + i], for R rows and V vectors.
template <int R, int V>
static __attribute__((noinline)) void gemm_block(const float* a, int64_t ar, int64_t ak, const float* b, float* c, int lanes,
                       int64_t depth, bool add) {
  Vec sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = add ? load(c + r * lanes + v * VL) : Vec{};
  for (int64_t k = 0; k < depth; k++) {
    Vec right[V];
    for (int v = 0; v < V; v++) right[v] = load(b + k * lanes + v * VL);
    for (int r = 0; r < R; r++) {
      const float left = a[r * ar + k * ak];
      for (int v = 0; v < V; v++) sum[r][v] += right[v] * left;
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(c + r * lanes + v * VL, sum[r][v]);
}

template <int V>
static void gemm_columns(const float* a, int64_t ar, int64_t ak, const float* b, float* c, int lanes,
                         int64_t rows, int64_t depth, bool add) {
  int64_t r = 0;
  for (; r + GEMM_ROWS <= rows; r += GEMM_ROWS)
    gemm_block<GEMM_ROWS, V>(a + r * ar, ar, ak, b, c + r * lanes, lanes, depth, add);
  for (; r + 2 <= rows; r += 2)
    gemm_block<2, V>(a + r * ar, ar, ak, b, c + r * lanes, lanes, depth, add);
  if (r < rows) gemm_block<1, V>(a + r * ar, ar, ak, b, c + r * lanes, lanes, depth, add);
}

static void gemm(const float* a, int64_t ar, int64_t ak, const float* b, float* c, int lanes,
                 int64_t rows, int64_t depth, bool add) {
  constexpr int WIDE = GEMM_VECTORS * VL;
  int i = 0;
  for (; i + WIDE <= lanes; i += WIDE)
    gemm_columns<GEMM_VECTORS>(a, ar, ak, b + i, c + i, lanes, rows, depth, add);
  // Only AVX-512 has tiles that are no multiple of WIDE.
  if (i + 2 * VL <= lanes && WIDE > 2 * VL) {
    gemm_columns<2>(a, ar, ak, b + i, c + i, lanes, rows, depth, add);
    i += 2 * VL;
  }
  if (i < lanes) gemm_columns<1>(a, ar, ak, b + i, c + i, lanes, rows, depth, add);
}

// scores -> e^(scale * scores + mask - the largest of these), and 1 / their sum, a lane. A lane whose
// keys are all masked by -infinity gets 0, as torch's scaled_dot_product_attention gives it.
static void softmax(float* scores, int64_t keys, int lanes, float scale, const float* mask,
                    bool mask_has_lanes, float* inverse) {
  constexpr float LOG2_E = 1.44269504f;
  const Vec nothing = splat(-__builtin_inff());
  for (int i = 0; i < lanes; i += VL) {
    float* column = scores + i;
    Vec most = nothing;
    if (mask == nullptr) {
      for (int64_t j = 0; j < keys; j++) most = larger(load(column + j * lanes), most);
    } else {
      for (int64_t j = 0; j < keys; j++) {
        const Vec added = mask_has_lanes ? load(mask + j * lanes + i) : splat(mask[j]);
        const Vec s = load(column + j * lanes) * scale + added;
        store(column + j * lanes, s);
        most = larger(s, most);
      }
    }
    // -infinity minus -infinity would be NaN. The largest is subtracted before anything is multiplied:
    // the lowest float times log2(e) is -infinity, and a large score that was rounded in between may
    // exceed the largest by thousands.
    const Vec base = most == nothing ? Vec{} : most;
    const float factor = mask == nullptr ? scale * LOG2_E : LOG2_E;
    Vec sum = Vec{};
    for (int64_t j = 0; j < keys; j++) {
      const Vec e = exp2_negative((load(column + j * lanes) - base) * factor);
      sum += e;
      store(column + j * lanes, e);
    }
    store(inverse + i, most == nothing ? Vec{} : 1.f / sum);
  }
}

// Floats that attend needs for its own: scores, context, one lane's figures, a mask by lanes.
static inline int64_t attention_scratch(int64_t keys, int64_t features) {
  return (2 * keys + features + 1) * MAX_LANES + (keys + LANE_STEP) / LANE_STEP * LANE_STEP;
}

static void attend(const HeadTile* tiles, int count, int64_t keys, int64_t features, float scale,
                   const Mask& mask, float* scratch) {
  float* scores = scratch;
  float* lane_mask = scores + keys * MAX_LANES;
  float* context = lane_mask + keys * MAX_LANES;
  float* inverse = context + features * MAX_LANES;
  float* key_mask = inverse + MAX_LANES;
  const bool by_query = mask.data != nullptr && mask.query_stride != 0;
  if (mask.data != nullptr && !by_query)
    for (int64_t j = 0; j < keys; j++) key_mask[j] = mask.at(0, j);
  int64_t query = 0;
  for (int n = 0; n < count; n++) {
    const HeadTile& own = tiles[n];
    int64_t key = 0;
    for (int m = 0; m < count; m++) {
      gemm(tiles[m].k, 1, tiles[m].lanes, own.q, scores + key * own.lanes, own.lanes,
           tiles[m].tokens, features, false);
      key += tiles[m].tokens;
    }
    if (by_query)
      for (int64_t j = 0; j < keys; j++)
        for (int t = 0; t < own.lanes; t++)
          lane_mask[j * own.lanes + t] = t < own.tokens ? mask.at(query + t, j) : 0.f;
    const float* added = mask.data == nullptr ? nullptr : by_query ? lane_mask : key_mask;
    softmax(scores, keys, own.lanes, scale, added, by_query, inverse);
    key = 0;
    for (int m = 0; m < count; m++) {
      gemm(tiles[m].v, tiles[m].lanes, 1, scores + key * own.lanes, context, own.lanes, features,
           tiles[m].tokens, m > 0);
      key += tiles[m].tokens;
    }
    for (int64_t d = 0; d < features; d++)
      for (int i = 0; i < own.lanes; i += VL)
        store(own.q + d * own.lanes + i, load(context + d * own.lanes + i) * load(inverse + i));
    query += own.tokens;
  }
}

}  // namespace sparsebert
