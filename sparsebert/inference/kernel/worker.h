// One thread's way through the layers of the encoder, for one group of sequences.
//
// Activations lie feature by feature, [features][tokens of a tile], from the first layer to the last:
// tokens are the vector axis, so no step needs a transpose or a sum across a vector. Per layer:
//
//   Q, K, V  = sparse product of X                        [3 hidden][T]
//   context  = attention, over the queries                [hidden][T]
//   A        = LayerNorm(sparse product of context + X)   over the keys, which are done with
//   F        = GELU(sparse product of A)                  [inner][T]
//   X        = LayerNorm(sparse product of F + A)
#pragma once
#include <algorithm>
#include <vector>

#include "attention.h"
#include "packed.h"
#include "pool.h"
#include "product.h"
#include "tiles.h"

namespace sparsebert {

struct MaskView {
  const float* data;
  int64_t batch, head, query, key;  // strides
};

struct Call {
  const void* packed;
  const Header* header;
  const float* x;  // [batch][length][hidden]
  float* y;
  int64_t batch, length;
  MaskView mask;
};

struct Tile {
  int64_t start;  // in tokens, padding included; all tiles before it are full
  int lanes, tokens;
};

// How a group's tokens are cut into tiles: full ones and a last one as narrow as it may be.
struct Tiling {
  int full;
  int64_t tokens, count;

  Tiling(int64_t tokens, int full) : full(full), tokens(tokens), count((tokens + full - 1) / full) {}

  Tile operator[](int64_t n) const {
    const int here = static_cast<int>(std::min<int64_t>(full, tokens - n * full));
    return {n * full, (here + LANE_STEP - 1) / LANE_STEP * LANE_STEP, here};
  }

  int64_t padded() const { return count == 0 ? 0 : (*this)[count - 1].start + (*this)[count - 1].lanes; }
};

// Narrower tiles cost more a token, but let more threads take part.
static int choose_width(int64_t tokens, int threads) {
  int full = MAX_LANES;
  if (full > 2 * LANE_STEP && (tokens + full - 1) / full < threads) full = 2 * LANE_STEP;
  return full;
}

// What the threads of one group share. Offsets into the three are token start x features.
struct Group {
  int64_t first, sequences;  // of the call's batch
  Tiling tiling;
  float *x, *qkv, *inner;
  int threads;
  Barrier* barrier;
};

static const Matrix& matrix_of(const Call& call, const Layer& layer, int which) {
  return *at<Matrix>(call.packed, layer.matrix[which]);
}

static const float* vector_of(const Call& call, const Layer& layer, int which) {
  return at<float>(call.packed, layer.vector[which]);
}

static void product(const Call& call, const Layer& layer, int which, int bias, const Tile& tile,
             uint32_t chunk, uint32_t chunk_end, const float* x, const float* residual, float* y) {
  with_width(tile.lanes, [&](auto width) {
    multiply<width()>(call.packed, matrix_of(call, layer, which), call.header->block_inputs, chunk,
                      chunk_end, x, vector_of(call, layer, bias), residual, which == UP, y);
  });
}

// One thread's way through a group.
class Worker {
 public:
  Worker(const Call& call, const Group& group, int index, float* own)
      : call_(call), h_(*call.header), group_(group), index_(index), own_(own) {}

  void run() {
    const int64_t hidden = h_.hidden;
    const int64_t offset = group_.first * call_.length;
    each_tile([&](const Tile& tile) {
      to_tile(call_.x + (offset + tile.start) * hidden, tile.tokens, tile.lanes, hidden, x(tile));
    });
    const bool by_tile = group_.threads == 1 || group_.tiling.count >= group_.threads;
    const Layer* layers = at<Layer>(call_.packed, h_.layer_table);
    for (uint32_t l = 0; l < h_.layers; l++) {
      if (by_tile)
        layer_by_tiles(layers[l]);
      else
        layer_by_rows(layers[l]);
    }
    each_tile([&](const Tile& tile) {
      from_tile(x(tile), tile.tokens, tile.lanes, hidden, call_.y + (offset + tile.start) * hidden);
    });
  }

 private:
  float* x(const Tile& tile) const { return group_.x + tile.start * h_.hidden; }
  float* qkv(const Tile& tile) const { return group_.qkv + tile.start * 3 * h_.hidden; }
  // Over the keys.
  float* after(const Tile& tile) const { return qkv(tile) + int64_t(h_.hidden) * tile.lanes; }

  template <typename F>
  void each_tile(F&& f) const {
    const int64_t count = group_.tiling.count;
    for (int64_t n = count * index_ / group_.threads; n < count * (index_ + 1) / group_.threads; n++)
      f(group_.tiling[n]);
  }

  // Two barriers: attention reads the keys of other threads' tiles.
  void layer_by_tiles(const Layer& layer) {
    const auto all = [&](int which) { return matrix_of(call_, layer, which).chunks; };
    each_tile([&](const Tile& tile) {
      product(call_, layer, QKV, QKV_BIAS, tile, 0, all(QKV), x(tile), nullptr, qkv(tile));
    });
    group_.barrier->wait();
    attention();
    group_.barrier->wait();
    each_tile([&](const Tile& tile) {
      // One tile's inner activations at a time, in this thread's own memory.
      float* inner = group_.inner + int64_t(index_) * h_.inner * MAX_LANES;
      product(call_, layer, OUT, OUT_BIAS, tile, 0, all(OUT), qkv(tile), x(tile), after(tile));
      norm(layer, NORM1_WEIGHT, after(tile), tile, 0, 1);
      product(call_, layer, UP, UP_BIAS, tile, 0, all(UP), after(tile), nullptr, inner);
      product(call_, layer, DOWN, DOWN_BIAS, tile, 0, all(DOWN), inner, after(tile), x(tile));
      norm(layer, NORM2_WEIGHT, x(tile), tile, 0, 1);
    });
  }

  // Fewer tiles than threads: rows are shared, with a barrier after each step.
  void layer_by_rows(const Layer& layer) {
    const auto inner = [&](const Tile& tile) { return group_.inner + tile.start * h_.inner; };
    if (group_.threads > 1) group_.barrier->wait();
    shared(layer, QKV, QKV_BIAS, [&](const Tile& t) { return x(t); },
           [&](const Tile&) { return nullptr; }, [&](const Tile& t) { return qkv(t); });
    attention();
    group_.barrier->wait();
    shared(layer, OUT, OUT_BIAS, [&](const Tile& t) { return qkv(t); },
           [&](const Tile& t) { return x(t); }, [&](const Tile& t) { return after(t); });
    shared_norm(layer, NORM1_WEIGHT, [&](const Tile& t) { return after(t); });
    shared(layer, UP, UP_BIAS, [&](const Tile& t) { return after(t); },
           [&](const Tile&) { return nullptr; }, inner);
    shared(layer, DOWN, DOWN_BIAS, inner, [&](const Tile& t) { return after(t); },
           [&](const Tile& t) { return x(t); });
    shared_norm(layer, NORM2_WEIGHT, [&](const Tile& t) { return x(t); });
  }

  template <typename X, typename R, typename Y>
  void shared(const Layer& layer, int which, int bias, X&& from, R&& residual, Y&& to) {
    const uint64_t chunks = matrix_of(call_, layer, which).chunks;
    const uint64_t units = group_.tiling.count * chunks;
    for (uint64_t u = units * index_ / group_.threads; u < units * (index_ + 1) / group_.threads; u++) {
      const Tile tile = group_.tiling[u / chunks];
      const uint32_t chunk = static_cast<uint32_t>(u % chunks);
      product(call_, layer, which, bias, tile, chunk, chunk + 1, from(tile), residual(tile), to(tile));
    }
    group_.barrier->wait();
  }

  template <typename X>
  void shared_norm(const Layer& layer, int weight, X&& of) {
    for (int64_t n = 0; n < group_.tiling.count; n++) {
      const Tile tile = group_.tiling[n];
      norm(layer, weight, of(tile), tile, index_, group_.threads);
    }
    group_.barrier->wait();
  }

  void norm(const Layer& layer, int weight, float* tile, const Tile& shape, int part, int parts) {
    layer_norm(tile, shape.lanes, h_.hidden, vector_of(call_, layer, weight),
               vector_of(call_, layer, weight + 1), h_.layer_norm_eps, part, parts);
  }

  void attention() {
    const int64_t heads = h_.heads, units = group_.sequences * heads;
    // A sequence that begins with a tile is used where it lies.
    const bool aligned = group_.sequences == 1 || call_.length % group_.tiling.full == 0;
    for (int64_t u = units * index_ / group_.threads; u < units * (index_ + 1) / group_.threads; u++) {
      if (aligned)
        attend_in_place(u / heads, u % heads);
      else
        attend_on_copies(u / heads, u % heads);
    }
  }

  Mask mask_of(int64_t sequence, int64_t head) const {
    const MaskView& m = call_.mask;
    if (m.data == nullptr) return {};
    return {m.data + (group_.first + sequence) * m.batch + head * m.head, m.query, m.key};
  }

  void attend_in_place(int64_t sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    const Tiling local(call_.length, group_.tiling.full);
    HeadTile* tiles = head_tiles();
    for (int64_t n = 0; n < local.count; n++) {
      Tile tile = local[n];
      tile.start += sequence * call_.length;
      float* q = qkv(tile) + head * features * tile.lanes;
      const int64_t next = int64_t(h_.hidden) * tile.lanes;
      tiles[n] = {q, q + next, q + 2 * next, tile.lanes, tile.tokens};
    }
    attend_tiles(tiles, local.count, sequence, head);
  }

  void attend_on_copies(int64_t sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    const Tiling local(call_.length, group_.tiling.full);
    HeadTile* tiles = head_tiles();
    float* copy = own_ + attention_scratch(call_.length, features);
    for (int64_t n = 0; n < local.count; n++) {
      const Tile tile = local[n];
      const int64_t size = features * tile.lanes;
      tiles[n] = {copy, copy + size, copy + 2 * size, tile.lanes, tile.tokens};
      copy += 3 * size;
    }
    move(tiles, local, sequence, head, true);
    attend_tiles(tiles, local.count, sequence, head);
    move(tiles, local, sequence, head, false);
  }

  // Queries, keys and values into the copies, or the contexts back.
  void move(const HeadTile* tiles, const Tiling& local, int64_t sequence, int64_t head, bool in) {
    const int64_t features = h_.hidden / h_.heads, full = group_.tiling.full;
    for (int64_t n = 0; n < local.count; n++) {
      const HeadTile& copy = tiles[n];
      for (int t = 0; t < copy.tokens;) {
        const int64_t token = sequence * call_.length + n * full + t;
        const Tile tile = group_.tiling[token / full];
        const int lane = static_cast<int>(token % full);
        const int run = std::min(copy.tokens - t, tile.tokens - lane);
        float* q = qkv(tile) + head * features * tile.lanes + lane;
        float* const copies[3] = {copy.q, copy.k, copy.v};
        for (int which = 0; which < (in ? 3 : 1); which++)
          for (int64_t d = 0; d < features; d++) {
            float* there = q + (which * int64_t(h_.hidden) + d) * tile.lanes;
            float* here = copies[which] + d * copy.lanes + t;
            if (in)
              memcpy(here, there, run * sizeof(float));
            else
              memcpy(there, here, run * sizeof(float));
          }
        t += run;
      }
      if (in)
        for (int64_t d = 0; d < 3 * features; d++)
          std::fill(copy.q + d * copy.lanes + copy.tokens, copy.q + (d + 1) * copy.lanes, 0.f);
    }
  }

  void attend_tiles(const HeadTile* tiles, int64_t count, int64_t sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    attend(tiles, static_cast<int>(count), call_.length, features,
           1.f / std::sqrt(static_cast<float>(features)), mask_of(sequence, head), own_);
  }

  HeadTile* head_tiles() {
    tiles_.resize((call_.length + LANE_STEP - 1) / LANE_STEP);
    return tiles_.data();
  }

  const Call& call_;
  const Header& h_;
  const Group& group_;
  const int index_;
  float* own_;
  std::vector<HeadTile> tiles_;
};

}  // namespace sparsebert
