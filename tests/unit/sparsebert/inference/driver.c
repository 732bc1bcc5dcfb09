/* Runs the kernel on cases from files, without Python: for sanitizers, fuzzing and emulators.
 *
 *   driver CASE...            every case's output must be what the file expects
 *   driver --fuzz N CASE...   N times: the packed weights with some bytes changed are refused, or
 *                             run without touching memory that is not theirs
 *
 * A case is one file: a header of int64 (packed bytes, batch, length, hidden, heads, whether there
 * is a mask, its four strides, its floats, threads), then the packed weights, x, the mask and the
 * expected output.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int sparsebert_abi(void);
int sparsebert_find_fault(const void *packed, uint64_t bytes);
int sparsebert_encode(const void *packed, const float *x, float *y, int64_t batch, int64_t length,
                      const float *mask, const int64_t *strides, int threads);
uint64_t sparsebert_release(void);

enum { PACKED, BATCH, LENGTH, HIDDEN, HEADS, MASKED, STRIDES, MASK_FLOATS = STRIDES + 4, THREADS, FIELDS };

struct Case {
  int64_t head[FIELDS];
  unsigned char *packed;
  float *x, *mask, *expected, *y;
};

static void *allocate(uint64_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, bytes ? bytes : 1) != 0) exit(3);
  return memory;
}

static void *read_bytes(FILE *file, uint64_t bytes) {
  void *memory = allocate(bytes);
  if (fread(memory, 1, bytes, file) != bytes) {
    fprintf(stderr, "the case is cut off\n");
    exit(3);
  }
  return memory;
}

static struct Case read_case(const char *path) {
  struct Case c;
  FILE *file = fopen(path, "rb");
  if (file == NULL || fread(c.head, sizeof(int64_t), FIELDS, file) != FIELDS) exit(3);
  const uint64_t floats = (uint64_t)(c.head[BATCH] * c.head[LENGTH] * c.head[HIDDEN]);
  c.packed = read_bytes(file, (uint64_t)c.head[PACKED]);
  c.x = read_bytes(file, floats * 4);
  c.mask = c.head[MASKED] ? read_bytes(file, (uint64_t)c.head[MASK_FLOATS] * 4) : NULL;
  c.expected = read_bytes(file, floats * 4);
  c.y = allocate(floats * 4);
  fclose(file);
  return c;
}

static int run(const struct Case *c, const void *packed) {
  return sparsebert_encode(packed, c->x, c->y, c->head[BATCH], c->head[LENGTH], c->mask,
                           c->head + STRIDES, (int)c->head[THREADS]);
}

static int check(const char *path) {
  struct Case c = read_case(path);
  const int fault = sparsebert_find_fault(c.packed, (uint64_t)c.head[PACKED]);
  if (fault != 0) {
    fprintf(stderr, "%s: good weights break rule %d\n", path, fault);
    return 1;
  }
  if (run(&c, c.packed) != 0) return 1;
  float largest = 0;
  for (int64_t i = 0; i < c.head[BATCH] * c.head[LENGTH] * c.head[HIDDEN]; i++) {
    const float difference = fabsf(c.y[i] - c.expected[i]);
    if (!(difference <= largest)) largest = difference; /* a NaN stays */
  }
  printf("%s: largest difference %.1e\n", path, largest);
  free(c.packed), free(c.x), free(c.mask), free(c.expected), free(c.y);
  return !(largest < 5e-5f);
}

static uint64_t state = 88172645463325252ull;

static uint64_t draw(void) { /* xorshift */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static void change(unsigned char *packed, uint64_t bytes) {
  static const uint64_t ODD[] = {0, 1, 2, 7, 8, 0x7fffffff, 0x80000000, 0xffffffff, 1ull << 40, ~0ull};
  /* The tables lie at both ends; the rest are weights and indices. */
  const uint64_t edge = bytes < 2048 ? bytes : 1024;
  uint64_t at = draw() % bytes;
  if (draw() % 2) at = draw() % 2 ? draw() % edge : bytes - 1 - draw() % edge;
  const uint64_t left = bytes - at;
  uint64_t value = draw() % 2 ? draw() : ODD[draw() % (sizeof ODD / sizeof *ODD)];
  switch (draw() % 4) {
    case 0: packed[at] ^= (unsigned char)(1u << draw() % 8); break;
    case 1: memcpy(packed + at, &value, left < 8 ? left : 8); break;
    case 2: at -= at % 8; memcpy(packed + at, &value, 8); break;
    default: at -= at % 4; memcpy(packed + at, &value, 4);
  }
}

static int fuzz(const char *path, long rounds) {
  struct Case c = read_case(path);
  const uint64_t bytes = (uint64_t)c.head[PACKED];
  unsigned char *changed = allocate(bytes);
  long refused = 0;
  for (long i = 0; i < rounds; i++) {
    memcpy(changed, c.packed, bytes);
    for (uint64_t n = 1 + draw() % 3; n > 0; n--) change(changed, bytes);
    const uint64_t told = draw() % 8 ? bytes : draw() % (bytes + 1);
    unsigned char *exact = allocate(told); /* so that a read behind its end is seen */
    memcpy(exact, changed, told);
    if (sparsebert_find_fault(exact, told) != 0)
      refused++;
    else {
      /* The caller has looked at the hidden size, as library.py does. */
      uint32_t hidden;
      memcpy(&hidden, exact + 24, sizeof hidden);
      if (hidden == (uint32_t)c.head[HIDDEN]) run(&c, exact);
    }
    free(exact);
  }
  printf("%s: %ld of %ld refused\n", path, refused, rounds);
  free(changed), free(c.packed), free(c.x), free(c.mask), free(c.expected), free(c.y);
  return refused == 0 || refused == rounds; /* else nothing was tried */
}

int main(int count, char **arguments) {
  int failed = sparsebert_abi() != 2, first = 1;
  long rounds = 0;
  if (count > 2 && strcmp(arguments[1], "--fuzz") == 0) rounds = atol(arguments[2]), first = 3;
  if (first >= count) return 3;
  for (int i = first; i < count; i++) failed |= rounds ? fuzz(arguments[i], rounds) : check(arguments[i]);
  sparsebert_release();
  return failed;
}
