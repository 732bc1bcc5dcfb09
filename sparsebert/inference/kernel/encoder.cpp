// The BERT encoder with sparse weights: the C functions that library.py calls.
//
// A call's sequences are computed in groups of some GROUP_TOKENS, so that scratch does not grow with
// the batch. Threads take whole sequences where that makes about equal shares; else they share a group:
// attention by heads, the rest by tiles, or by chunks of rows where there are fewer tiles than threads
// (worker.h).
#include <algorithm>
#include <new>

#include "worker.h"

namespace sparsebert {
namespace {

constexpr int64_t GROUP_TOKENS = 256;

// Which tokens of sequence `number` are computed: all, or those that the mask lets others attend to.
//
// A token that no query attends to has no part in any other's output. Where the mask is one number a
// key, such a token is left out, and its own output is 0.
void add_sequence(const MaskView& mask, int64_t number, int64_t length, std::vector<Sequence>* sequences,
                  std::vector<int64_t>* rows) {
  constexpr float MASKED = -1e38f, ATTENDED = -1e30f;
  Sequence found{number, static_cast<int64_t>(rows->size()), length, mask.data != nullptr};
  const bool by_key = mask.data != nullptr && mask.query == 0 && mask.head == 0;
  bool attended = false;
  if (by_key)
    for (int64_t j = 0; j < length; j++) attended |= mask.data[number * mask.batch + j * mask.key] > ATTENDED;
  if (attended) found.masked = false;
  for (int64_t j = 0; j < length; j++) {
    if (attended) {
      const float added = mask.data[number * mask.batch + j * mask.key];
      if (added < MASKED) continue;
      found.masked |= added != 0.f;
    }
    rows->push_back(number * length + j);
  }
  found.length = static_cast<int64_t>(rows->size()) - found.start;
  sequences->push_back(found);
}

// The sequences [first, last) of a call, group by group, on `threads` threads.
// False without memory.
bool encode(const Call& call, int64_t first, int64_t last, int threads) {
  const Header& h = *call.header;
  const Sequence* const sequences = call.sequences->data();
  Borrowed borrowed;
  for (int64_t begin = first; begin < last;) {
    int64_t end = begin, tokens = 0;
    while (end < last && (tokens == 0 || tokens + sequences[end].length <= GROUP_TOKENS * threads))
      tokens += sequences[end++].length;
    const Tiling tiling(tokens, choose_width(h, tokens, threads), h.values == INT8);
    const int64_t padded = tiling.padded();
    const int64_t inner_lanes = std::max<int64_t>(padded < MAX_LANES * threads ? padded : 0,
                                                  int64_t(MAX_LANES) * threads);
    const int64_t own = Worker::own_floats(h, call.length);
    const int64_t hidden = h.hidden, inner = h.inner;
    float* memory = borrowed.get(padded * 4 * hidden + inner_lanes * inner + threads * own);
    if (memory == nullptr) return false;
    Barrier barrier(threads);
    float* const own_memory = memory + padded * 4 * hidden + inner_lanes * inner;
    const Group group{sequences + begin, end - begin, tiling, memory, memory + padded * hidden,
                      memory + padded * 4 * hidden, threads, &barrier};
    const auto work = [&](int index) { Worker(call, group, index, own_memory + index * own).run(); };
    if (threads == 1)
      work(0);
    else if (!State::get().run(threads, work))
      return encode(call, begin, last, 1);
    begin = end;
  }
  return true;
}

// The first sequence of each thread's share, if whole sequences make shares of about equal tokens.
bool cut_by_sequences(const Call& call, int threads, std::vector<int64_t>* cuts) {
  constexpr double LARGEST_SHARE = 1.15;  // over the mean; else threads share each sequence
  const std::vector<Sequence>& sequences = *call.sequences;
  const int64_t count = static_cast<int64_t>(sequences.size());
  const double mean = double(call.rows->size()) / threads;
  cuts->assign(1, 0);
  int64_t next = 0, last_tokens = 0;
  for (int t = 1; t <= threads; t++) {
    // The cut nearest to t means.
    const auto end_of = [&](int64_t n) { return double(sequences[n].start + sequences[n].length); };
    while (next < count && (t == threads || end_of(next) - mean * t <= mean * t - sequences[next].start)) next++;
    const int64_t tokens = next == 0 ? 0 : static_cast<int64_t>(end_of(next - 1));
    if (double(tokens - last_tokens) > LARGEST_SHARE * mean) return false;
    last_tokens = tokens;
    cuts->push_back(next);
  }
  return true;
}

bool encode_by_sequences(const Call& call, const std::vector<int64_t>& cuts, int threads) {
  std::atomic<bool> done{true};
  const auto work = [&](int index) {
    if (!encode(call, cuts[index], cuts[index + 1], 1)) done = false;
  };
  if (!State::get().run(threads, work))
    return encode(call, 0, static_cast<int64_t>(call.sequences->size()), 1);
  return done;
}

}  // namespace
}  // namespace sparsebert

#define SPARSEBERT_EXPORT extern "C" __attribute__((visibility("default")))

SPARSEBERT_EXPORT int sparsebert_abi(void) { return 2; }

SPARSEBERT_EXPORT int sparsebert_vector_floats(void) { return sparsebert::VL; }

// Whether it computes weights of int8; buffers with them are refused otherwise.
SPARSEBERT_EXPORT int sparsebert_has_int8(void) { return sparsebert::HAS_INT8; }

// 0, or the number of the rule that the buffer breaks (packed.h).
SPARSEBERT_EXPORT int sparsebert_find_fault(const void* packed, uint64_t bytes) {
  return sparsebert::find_fault(packed, bytes);
}

// x and y: [batch][length][hidden]. mask: null, or what is added to the scores, with its strides by
// sequence, head, query and key. The output of a token that the mask keeps from all queries is 0. The
// buffer must have passed sparsebert_find_fault. 0, or 1 without memory.
SPARSEBERT_EXPORT int sparsebert_encode(const void* packed, const float* x, float* y, int64_t batch,
                                        int64_t length, const float* mask, const int64_t* strides,
                                        int threads) {
  using namespace sparsebert;
  if (batch <= 0 || length <= 0) return 0;
  try {
    MaskView view{};
    if (mask != nullptr) view = {mask, strides[0], strides[1], strides[2], strides[3]};
    std::vector<Sequence> sequences;
    std::vector<int64_t> rows;
    sequences.reserve(batch);
    rows.reserve(batch * length);
    for (int64_t n = 0; n < batch; n++) add_sequence(view, n, length, &sequences, &rows);
    const Header* header = at<Header>(packed, 0);
    const Call call{packed, header, x, y, length, view, &sequences, &rows};
    if (static_cast<int64_t>(rows.size()) < batch * length)
      memset(y, 0, sizeof(float) * batch * length * header->hidden);
    std::vector<int64_t> cuts;
    const bool done = threads > 1 && cut_by_sequences(call, threads, &cuts)
                          ? encode_by_sequences(call, cuts, threads)
                          : encode(call, 0, batch, std::max(1, threads));
    return done ? 0 : 1;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Gives back the memory that calls keep for the next one; the bytes that were released.
SPARSEBERT_EXPORT uint64_t sparsebert_release(void) { return sparsebert::State::get().release(); }
