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
#include "product_int8.h"
#include "tiles.h"

namespace sparsebert {

struct MaskView {
  const float* data;
  int64_t batch, head, query, key;  // strides
};

// The tokens of one sequence that are computed.
struct Sequence {
  int64_t number;         // in the caller's batch
  int64_t start, length;  // where they are in Call::rows
  bool masked;            // whether the mask changes a score of these tokens
};

struct Call {
  const void* packed;
  const Header* header;
  const float* x;  // [batch][length][hidden]
  float* y;
  int64_t length;
  MaskView mask;
  const std::vector<Sequence>* sequences;
  const std::vector<int64_t>* rows;  // of x and y, for each computed token
};

struct Tile {
  int64_t start;  // in tokens, padding included; all tiles before it are full
  int lanes, tokens;
};

// How tokens are cut into tiles: full ones and a last one as narrow as it may be.
struct Tiling {
  int full;
  bool int8;
  int64_t tokens, count;

  Tiling(int64_t tokens, int full, bool int8)
      : full(full), int8(int8), tokens(tokens), count((tokens + full - 1) / full) {}

  Tile operator[](int64_t n) const {
    const int here = static_cast<int>(std::min<int64_t>(full, tokens - n * full));
    const int lanes = (here + LANE_STEP - 1) / LANE_STEP * LANE_STEP;
    return {n * full, int8 && lanes == 48 ? 64 : lanes, here};  // no register has 48 bytes
  }

  int64_t padded() const { return count == 0 ? 0 : (*this)[count - 1].start + (*this)[count - 1].lanes; }
};

// Narrower tiles cost more a token, but let more threads take part.
static int choose_width(const Header& h, int64_t tokens, int threads) {
  int full = h.values == INT8 ? MAX_INT8_LANES : MAX_LANES;
  if (full > 2 * LANE_STEP && (tokens + full - 1) / full < threads) full = 2 * LANE_STEP;
  return full;
}

// What the threads of one group share. Offsets into the three are token start x features.
struct Group {
  const Sequence* sequences;
  int64_t count;
  Tiling tiling;
  float *x, *qkv, *inner;
  int threads;
  Barrier* barrier;
};

// What a product reads of one tile, and its figures a token: fp32 values and their poison, or bytes
// and their scales.
struct Input {
  const void* values;
  const float* tokens;
};

static const Matrix& matrix_of(const Call& call, const Layer& layer, int which) {
  return *at<Matrix>(call.packed, layer.matrix[which]);
}

static const float* vector_of(const Call& call, const Layer& layer, int which) {
  return at<float>(call.packed, layer.vector[which]);
}

// One thread's way through a group.
class Worker {
 public:
  Worker(const Call& call, const Group& group, int index, float* own)
      : call_(call), h_(*call.header), group_(group), index_(index), own_(own) {}

  // Floats of a thread's own: attention's with copies of one head, and the input of a product.
  static int64_t own_floats(const Header& h, int64_t length) {
    return attention_floats(h, length) + input_floats(h);
  }

  void run() {
    const int64_t hidden = h_.hidden;
    const int64_t* rows = call_.rows->data() + group_.sequences->start;
    each_tile([&](const Tile& tile) {
      to_tile(call_.x, rows + tile.start, tile.tokens, tile.lanes, hidden, x(tile));
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
      from_tile(x(tile), rows + tile.start, tile.tokens, tile.lanes, hidden, call_.y);
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
    const auto multiply = [&](int which, const Tile& tile, const float* x, const float* residual, float* y) {
      const Matrix& m = matrix_of(call_, layer, which);
      product(layer, which, tile, 0, m.chunks, read(tile, x, m.inputs), residual, y);
    };
    each_tile([&](const Tile& tile) { multiply(QKV, tile, x(tile), nullptr, qkv(tile)); });
    group_.barrier->wait();
    attention();
    group_.barrier->wait();
    each_tile([&](const Tile& tile) {
      // One tile's inner activations at a time, in this thread's own memory.
      float* inner = group_.inner + int64_t(index_) * h_.inner * MAX_LANES;
      multiply(OUT, tile, qkv(tile), x(tile), after(tile));
      norm(layer, NORM1_WEIGHT, after(tile), tile, 0, 1);
      multiply(UP, tile, after(tile), nullptr, inner);
      multiply(DOWN, tile, inner, after(tile), x(tile));
      norm(layer, NORM2_WEIGHT, x(tile), tile, 0, 1);
    });
  }

  // Fewer tiles than threads: rows are shared, with a barrier after each step.
  void layer_by_rows(const Layer& layer) {
    const auto inner = [&](const Tile& tile) { return group_.inner + tile.start * h_.inner; };
    if (group_.threads > 1) group_.barrier->wait();
    shared(layer, QKV, [&](const Tile& t) { return x(t); }, [&](const Tile&) { return nullptr; },
           [&](const Tile& t) { return qkv(t); });
    attention();
    group_.barrier->wait();
    shared(layer, OUT, [&](const Tile& t) { return qkv(t); }, [&](const Tile& t) { return x(t); },
           [&](const Tile& t) { return after(t); });
    shared_norm(layer, NORM1_WEIGHT, [&](const Tile& t) { return after(t); });
    shared(layer, UP, [&](const Tile& t) { return after(t); }, [&](const Tile&) { return nullptr; },
           inner);
    shared(layer, DOWN, inner, [&](const Tile& t) { return after(t); },
           [&](const Tile& t) { return x(t); });
    shared_norm(layer, NORM2_WEIGHT, [&](const Tile& t) { return x(t); });
  }

  template <typename X, typename R, typename Y>
  void shared(const Layer& layer, int which, X&& from, R&& residual, Y&& to) {
    const Matrix& m = matrix_of(call_, layer, which);
    const uint64_t units = group_.tiling.count * uint64_t(m.chunks);
    const uint64_t end = units * (index_ + 1) / group_.threads;
    for (uint64_t u = units * index_ / group_.threads; u < end;) {
      const uint64_t n = u / m.chunks, next = std::min(end, (n + 1) * m.chunks);
      const Tile tile = group_.tiling[n];
      const uint32_t chunk = static_cast<uint32_t>(u - n * m.chunks);
      product(layer, which, tile, chunk, chunk + static_cast<uint32_t>(next - u),
              read(tile, from(tile), m.inputs), residual(tile), to(tile));
      u = next;
    }
    group_.barrier->wait();
  }

  // What a product reads of x [inputs][lanes]. It is valid until the next call.
  Input read(const Tile& tile, const float* x, uint32_t inputs) {
    float* tokens = own_ + attention_floats(h_, call_.length);
#if SPARSEBERT_INT8
    if (h_.values == INT8) {
      uint8_t* bytes = reinterpret_cast<uint8_t*>(tokens + MAX_LANES);
      with_bytes(tile.lanes, [&](auto lanes) { quantize<lanes()>(x, inputs, bytes, tokens); });
      return {bytes, tokens};
    }
#endif
    with_width(tile.lanes, [&](auto width) { find_poison<width()>(x, inputs, tokens); });
    return {x, tokens};
  }

  void product(const Layer& layer, int which, const Tile& tile, uint32_t chunk, uint32_t chunk_end,
               const Input& input, const float* residual, float* y) {
    static constexpr int BIASES[MATRICES] = {QKV_BIAS, OUT_BIAS, UP_BIAS, DOWN_BIAS};
    const Matrix& m = matrix_of(call_, layer, which);
    const float* bias = vector_of(call_, layer, BIASES[which]);
#if SPARSEBERT_INT8
    if (h_.values == INT8) {
      with_bytes(tile.lanes, [&](auto lanes) {
        multiply_int8<lanes()>(call_.packed, m, h_.block_inputs, chunk, chunk_end,
                               static_cast<const uint8_t*>(input.values), input.tokens, bias,
                               residual, which == UP, y);
      });
      return;
    }
#endif
    with_width(tile.lanes, [&](auto width) {
      multiply<width()>(call_.packed, m, h_.block_inputs, chunk, chunk_end,
                        static_cast<const float*>(input.values), input.tokens, bias, residual,
                        which == UP, y);
    });
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
    const int64_t heads = h_.heads, units = group_.count * heads;
    for (int64_t u = units * index_ / group_.threads; u < units * (index_ + 1) / group_.threads; u++) {
      const Sequence& sequence = group_.sequences[u / heads];
      // One that begins with a tile and shares its last one with no other is used where it lies.
      const int64_t start = start_of(sequence), full = group_.tiling.full;
      const bool ends = sequence.length % full == 0 || u / heads + 1 == group_.count;
      if (start % full == 0 && ends)
        attend_in_place(sequence, u % heads);
      else
        attend_on_copies(sequence, u % heads);
    }
  }

  int64_t start_of(const Sequence& sequence) const {
    return sequence.start - group_.sequences->start;
  }

  Mask mask_of(const Sequence& sequence, int64_t head) const {
    const MaskView& m = call_.mask;
    if (!sequence.masked) return {};
    return {m.data + sequence.number * m.batch + head * m.head, m.query, m.key,
            call_.rows->data() + sequence.start, sequence.number * call_.length};
  }

  void attend_in_place(const Sequence& sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    const Tiling local(sequence.length, group_.tiling.full, group_.tiling.int8);
    HeadTile* tiles = head_tiles(local);
    for (int64_t n = 0; n < local.count; n++) {
      Tile tile = local[n];
      tile.start += start_of(sequence);
      float* q = qkv(tile) + head * features * tile.lanes;
      const int64_t next = int64_t(h_.hidden) * tile.lanes;
      tiles[n] = {q, q + next, q + 2 * next, tile.lanes, tile.tokens};
    }
    attend_tiles(tiles, local.count, sequence, head);
  }

  void attend_on_copies(const Sequence& sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    const Tiling local(sequence.length, group_.tiling.full, group_.tiling.int8);
    HeadTile* tiles = head_tiles(local);
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
  void move(const HeadTile* tiles, const Tiling& local, const Sequence& sequence, int64_t head, bool in) {
    const int64_t features = h_.hidden / h_.heads, full = group_.tiling.full;
    for (int64_t n = 0; n < local.count; n++) {
      const HeadTile& copy = tiles[n];
      for (int t = 0; t < copy.tokens;) {
        const int64_t token = start_of(sequence) + n * full + t;
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

  void attend_tiles(const HeadTile* tiles, int64_t count, const Sequence& sequence, int64_t head) {
    const int64_t features = h_.hidden / h_.heads;
    attend(tiles, static_cast<int>(count), sequence.length, features,
           1.f / std::sqrt(static_cast<float>(features)), mask_of(sequence, head), own_);
  }

  HeadTile* head_tiles(const Tiling& local) {
    tiles_.resize(local.count);
    return tiles_.data();
  }

  static int64_t attention_floats(const Header& h, int64_t length) {
    const int64_t features = h.hidden / h.heads;
    const int64_t wanted = attention_scratch(length, features) + 3 * features * (length + MAX_LANES);
    return (wanted + 63) / 64 * 64;
  }

  static int64_t input_floats(const Header& h) {
    const int64_t bytes = h.values == INT8 ? int64_t(std::max(h.hidden, h.inner)) * MAX_LANES : 0;
    return MAX_LANES + (bytes / 4 + 63) / 64 * 64;
  }

  const Call& call_;
  const Header& h_;
  const Group& group_;
  const int index_;
  float* own_;
  std::vector<HeadTile> tiles_;
};

}  // namespace sparsebert
