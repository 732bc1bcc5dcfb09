// The BERT encoder with sparse weights: the C functions that library.py calls.
//
// A call's sequences are computed in groups of some GROUP_TOKENS, so that scratch does not grow with
// the batch. Threads take whole sequences where there are enough of them; else they share a group:
// attention by heads, the rest by tiles, or by chunks of rows where there are fewer tiles than threads
// (worker.h).
#include <algorithm>
#include <new>

#include "worker.h"

namespace sparsebert {
namespace {

constexpr int64_t GROUP_TOKENS = 256;

// Floats of a thread's own: attention's, and copies of one head.
int64_t own_scratch(const Call& call) {
  const int64_t features = call.header->hidden / call.header->heads;
  const int64_t padded = call.length + MAX_LANES;
  const int64_t wanted = attention_scratch(call.length, features) + 3 * features * padded;
  return (wanted + 63) / 64 * 64;
}

// The sequences [first, last) of a call, group by group, on `threads` threads.
// False without memory.
bool encode(const Call& call, int64_t first, int64_t last, int threads) {
  const Header& h = *call.header;
  const int64_t target = GROUP_TOKENS * threads;
  const int64_t size = std::max<int64_t>(1, target / call.length);
  Borrowed borrowed;
  for (int64_t begin = first; begin < last; begin += size) {
    const int64_t sequences = std::min(size, last - begin);
    const int64_t tokens = sequences * call.length;
    const Tiling tiling(tokens, choose_width(tokens, threads));
    const int64_t padded = tiling.padded();
    const int64_t inner_lanes = std::max<int64_t>(padded < MAX_LANES * threads ? padded : 0,
                                                  int64_t(MAX_LANES) * threads);
    const int64_t own = own_scratch(call);
    const int64_t hidden = h.hidden, inner = h.inner;
    float* memory = borrowed.get(padded * 4 * hidden + inner_lanes * inner + threads * own);
    if (memory == nullptr) return false;
    Barrier barrier(threads);
    float* const own_memory = memory + padded * 4 * hidden + inner_lanes * inner;
    const Group group{begin, sequences, tiling, memory, memory + padded * hidden,
                      memory + padded * 4 * hidden, threads, &barrier};
    const auto work = [&](int index) { Worker(call, group, index, own_memory + index * own).run(); };
    if (threads == 1)
      work(0);
    else if (!State::get().run(threads, work))
      return encode(call, begin, last, 1);
  }
  return true;
}

bool encode_by_sequences(const Call& call, int threads) {
  std::atomic<bool> done{true};
  const auto work = [&](int index) {
    const int64_t first = call.batch * index / threads, last = call.batch * (index + 1) / threads;
    if (!encode(call, first, last, 1)) done = false;
  };
  if (!State::get().run(threads, work)) return encode(call, 0, call.batch, 1);
  return done;
}

}  // namespace
}  // namespace sparsebert

#define SPARSEBERT_EXPORT extern "C" __attribute__((visibility("default")))

SPARSEBERT_EXPORT int sparsebert_abi(void) { return 1; }

SPARSEBERT_EXPORT int sparsebert_vector_floats(void) { return sparsebert::VL; }

// 0, or the number of the rule that the buffer breaks (packed.h).
SPARSEBERT_EXPORT int sparsebert_find_fault(const void* packed, uint64_t bytes) {
  return sparsebert::find_fault(packed, bytes);
}

// x and y: [batch][length][hidden]. mask: null, or what is added to the scores, with its strides by
// sequence, head, query and key. The buffer must have passed sparsebert_find_fault.
// 0, or 1 without memory.
SPARSEBERT_EXPORT int sparsebert_encode(const void* packed, const float* x, float* y, int64_t batch,
                                        int64_t length, const float* mask, const int64_t* strides,
                                        int threads) {
  using namespace sparsebert;
  if (batch <= 0 || length <= 0) return 0;
  try {
    MaskView view{};
    if (mask != nullptr) view = {mask, strides[0], strides[1], strides[2], strides[3]};
    const Call call{packed, at<Header>(packed, 0), x, y, batch, length, view};
    // Sharing one sequence pays from one vector of tokens a thread on.
    const bool whole = threads > 1 && batch >= threads && (batch % threads == 0 || batch >= 4 * threads);
    const bool done = whole ? encode_by_sequences(call, threads)
                            : encode(call, 0, batch, std::max(1, threads));
    return done ? 0 : 1;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Gives back the memory that calls keep for the next one; the bytes that were released.
SPARSEBERT_EXPORT uint64_t sparsebert_release(void) { return sparsebert::State::get().release(); }
