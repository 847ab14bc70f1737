/* Few-bit codes of levels, several to a byte, the first in the lowest bits; written by the cell that an element lies in. */

#include <string.h>

#include "half.h"
#include "vectors.h"

/* Elements of a block, whose cells and codes stay in the nearest cache, and of what a thread takes at a time. */
enum { BLOCK = 512, ELEMENTS = 32 * BLOCK };

/* Elements of what is encoded: x, float32 or, in `halves`, bfloat16; or, where there is `times`, (x - shift) * times, with
 * one number of each for a row of `positions`, and the first ones again after `cycle` rows. */
typedef struct {
  const void *x;
  const float *shift, *times;
  Size positions, cycle;
  int halves;
} Source;

/* So many elements from `start` on: where they lie, or in the room. */
static const float *elements(const Source *source, Size start, Size count, float *room) {
  const Half16 *half = (const Half16 *)source->x + start;
  const float *single = (const float *)source->x + start;
  if (!source->times && !source->halves) return single;
  if (source->halves) widen(room, half, count), single = room;
  if (!source->times) return room;
  Size row = start / source->positions % source->cycle, at = start % source->positions;
  for (Size done = 0, now; done < count; done += now, at = 0, row = row + 1 < source->cycle ? row + 1 : 0) {
    now = least(count - done, source->positions - at);
    const float shift = source->shift[row], times = source->times[row];
#pragma GCC ivdep
    for (Size i = done; i < done + now; i++) room[i] = (single[i] - shift) * times;
  }
  return room;
}

/* codes = table[cells], for a multiple of 64 cells. */
#if defined(__AVX512VBMI__) && !defined(__clang__)
typedef uint8_t Bytes __attribute__((vector_size(64), aligned(1), may_alias));
typedef int8_t Signed __attribute__((vector_size(64), aligned(1), may_alias));

static void look_up(const uint8_t *table, const uint8_t *cells, uint8_t *codes) {
  const Bytes *parts = (const Bytes *)table;
  for (int i = 0; i < BLOCK; i += 64) {
    const Bytes now = *(const Bytes *)(cells + i), upper = (Bytes)((Signed)now < 0);
    const Bytes low = __builtin_shuffle(parts[0], parts[1], now), high = __builtin_shuffle(parts[2], parts[3], now);
    *(Bytes *)(codes + i) = (low & ~upper) | (high & upper);
  }
}
#else
static void look_up(const uint8_t *table, const uint8_t *cells, uint8_t *codes) {
  for (int i = 0; i < BLOCK; i++) codes[i] = table[cells[i]];
}
#endif

/* The sum of squares of what values differ from the levels of their codes by, for at most a block. */
static __attribute__((noinline)) double lost_by(const float *values, const uint8_t *codes, Size count,
                                                const float *levels, int bits) {
  Size i = 0;
  double rest = 0;
  Vector sum[4] = {{0}};
  /* Few levels stay in a register. */
#if defined(__AVX512F__) && !defined(__clang__)
  if (bits <= 4) {
    int32_t places[BLOCK] __attribute__((aligned(64)));
    Vector known = {0};
    for (int l = 0; l < 1 << bits; l++) known[l] = levels[l];
    for (Size k = 0; k < count; k++) places[k] = codes[k];
    for (; i + 4 * LANES <= count; i += 4 * LANES)
      for (int v = 0; v < 4; v++) {
        const Vector level = __builtin_shuffle(known, *(const Places *)(places + i + v * LANES));
        const Vector far = *(const Vector *)(values + i + v * LANES) - level;
        sum[v] += far * far;
      }
  }
#else
  (void)bits;
#endif
  for (; i + LANES <= count; i += LANES) {
    Vector level;
    for (int l = 0; l < LANES; l++) level[l] = levels[codes[i + l]];
    const Vector far = *(const Vector *)(values + i) - level;
    sum[0] += far * far;
  }
  for (; i < count; i++) rest += (values[i] - levels[codes[i]]) * (values[i] - levels[codes[i]]);
  return rest + total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Bytes of codes, as `unpack` takes them. */
static inline __attribute__((always_inline)) void pack(const uint8_t *codes, uint8_t *packed, int bytes,
                                                       const int bits) {
  for (int i = 0; i < bytes; i++) {
    int byte = 0;
    for (int j = 0; j < 8 / bits; j++) byte |= codes[8 / bits * i + j] << j * bits;
    packed[i] = (uint8_t)byte;
  }
}

static double encode_part(const Source *source, Size start, uint8_t *packed, Size count, const uint8_t *table, int bits,
                          float reach, float scale, float offset, const float *levels) {
  const int held = 8 / bits;
  const float last = reach - 0.5f / scale;
  double lost = 0;
  float room[BLOCK];
  for (; count > 0; count -= BLOCK, start += BLOCK, packed += BLOCK / held) {
    const int now = (int)least(count, BLOCK), bytes = (now + held - 1) / held;
    const float *values = elements(source, start, now, room);
    uint8_t cells[BLOCK] = {0}, codes[BLOCK];
    for (int i = 0; i < now; i++) {
      const float v = values[i] < -reach ? -reach : values[i] > last ? last : values[i];
      cells[i] = (uint8_t)(int32_t)(v * scale + offset);
    }
    look_up(table, cells, codes);
    if (bits == 4) pack(codes, packed, bytes, 4);
    else if (bits == 2) pack(codes, packed, bytes, 2);
    else if (bits == 1) pack(codes, packed, bytes, 1);
    else memcpy(packed, codes, bytes);
    if (now % held) packed[bytes - 1] &= (uint8_t)((1 << now % held * bits) - 1);
    if (levels) lost += lost_by(values, codes, now, levels, bits);
  }
  return lost;
}

/* packed = table[cell of an element], `bits` bits each; the cells cut -reach..reach into 256. What is encoded is x [count],
 * or what `Source` says of it. Returns the sum of squares of the elements minus levels[code], or 0 where levels is NULL. */
double encode(const void *x, uint8_t *packed, Size count, const uint8_t *table, int bits, float reach, float scale,
              float offset, const float *levels, int halves, const float *shift, const float *times, Size positions,
              Size cycle) {
  const Source source = {x, shift, times, positions, cycle, halves};
  const Size parts = up(count, ELEMENTS);
  double lost = 0;
#pragma omp parallel for schedule(static) reduction(+ : lost) if (count > 2 * ELEMENTS)
  for (Size part = 0; part < parts; part++) {
    const Size start = part * ELEMENTS;
    lost += encode_part(&source, start, packed + start * bits / 8, least(count - start, ELEMENTS), table, bits, reach,
                        scale, offset, levels);
  }
  return lost;
}

/* The codes of a block, a byte each. The number of bits is a constant for the compiler to unroll by. */
static inline __attribute__((always_inline)) void unpack(const uint8_t *packed, uint8_t *codes, Size bytes, const int bits) {
  for (Size i = 0; i < bytes; i++)
    for (int j = 0; j < 8 / bits; j++) codes[8 / bits * i + j] = packed[i] >> j * bits & ((1 << bits) - 1);
}

static void scale_part(const float *grad, float *out, const uint8_t *packed, Size count, const float *levels, int bits) {
  for (; count > 0; count -= BLOCK, grad += BLOCK, out += BLOCK, packed += BLOCK * bits / 8) {
    const Size now = least(count, BLOCK), bytes = (now * bits + 7) / 8;
    uint8_t codes[BLOCK];
    if (bits == 4) unpack(packed, codes, bytes, 4);
    else if (bits == 2) unpack(packed, codes, bytes, 2);
    else if (bits == 1) unpack(packed, codes, bytes, 1);
    else memcpy(codes, packed, bytes);
#pragma GCC ivdep
    for (Size k = 0; k < now; k++) out[k] = grad[k] * levels[codes[k]];
  }
}

/* A row of levels for each value that a byte may have, of all the codes in it. */
typedef struct {
  float levels[(UINT8_MAX + 1) * 8];
} Rows;

static void fill_rows(Rows *rows, const float *levels, int bits) {
  const int held = 8 / bits;
  for (int byte = 0; byte <= UINT8_MAX; byte++)
    for (int j = 0; j < held; j++) rows->levels[byte * held + j] = levels[byte >> j * bits & ((1 << bits) - 1)];
}

static inline __attribute__((always_inline)) void spell(float *out, const uint8_t *packed, Size bytes, const Rows *rows,
                                                        const int held) {
  for (Size i = 0; i < bytes; i++) memcpy(out + held * i, rows->levels + held * packed[i], held * sizeof(float));
}

static void decode_part(float *out, const uint8_t *packed, Size count, const Rows *rows, int bits) {
  const int held = 8 / bits;
  const Size whole = count / held;
  if (bits == 1) spell(out, packed, whole, rows, 8);
  else if (bits == 2) spell(out, packed, whole, rows, 4);
  else if (bits == 4) spell(out, packed, whole, rows, 2);
  else spell(out, packed, whole, rows, 1);
  memcpy(out + held * whole, rows->levels + (count % held ? held * packed[whole] : 0), count % held * sizeof(float));
}

/* out = levels[code]. */
void decode(const uint8_t *packed, float *out, Size count, const float *levels, int bits) {
  Rows rows;
  fill_rows(&rows, levels, bits);
#pragma omp parallel for schedule(static) if (count > 2 * ELEMENTS)
  for (Size start = 0; start < count; start += ELEMENTS)
    decode_part(out + start, packed + start * bits / 8, least(count - start, ELEMENTS), &rows, bits);
}

/* out = grad * levels[code]. */
void scale(const float *grad, float *out, const uint8_t *packed, Size count, const float *levels, int bits) {
#pragma omp parallel for schedule(static) if (count > 2 * ELEMENTS)
  for (Size start = 0; start < count; start += ELEMENTS)
    scale_part(grad + start, out + start, packed + start * bits / 8, least(count - start, ELEMENTS), levels, bits);
}
