/* Products of rows that are quantized one by one: what the operators of a decoder graph are made of.
 *
 * A row of `width` f32 becomes i8 codes and a scale, row[k] ~ codes[k] * scale; codes stand in rows of `stride`
 * bytes, `width` rounded up to 64, and are zero past the width. Weights are i8 in blocks of 16 outputs:
 *
 *     weights[block][k / 4][output % 16][k % 4]        width is a multiple of 32
 *
 * so that a block is read from its first byte to its last. Sums are whole numbers, exact below a width of 2^17: an
 * answer depends on its own row alone, and is the same in every variant.
 */
#ifndef HEADRACE_ROWS_H
#define HEADRACE_ROWS_H

#include "attention.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#define HR_X86 1
#else
#define HR_X86 0
#endif

#define ROWS_BLOCK 16

typedef struct {
    const int8_t *codes;  /* [count rounded up to 16][stride]; rows past the count are zero */
    const float *scales;  /* [count] */
    ptrdiff_t count, width, stride;
} hr_rows;

typedef struct {
    const char *isa;
    /* A row that is not finite gets zeros and a scale of NaN. */
    void (*quantize)(const float *x, ptrdiff_t count, ptrdiff_t width, int8_t *codes, ptrdiff_t stride, float *scales);
    /* out[row][output] = sum * scales[output] * row's scale, for the outputs of blocks first ... last - 1. */
    void (*linear)(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                   float *out, ptrdiff_t out_stride);
    /* Blocks are pairs (gate, up): out[row][j] = g / (1 + exp(-g)) * u, for the pairs first ... last - 1. */
    void (*gated)(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                  float *out, ptrdiff_t out_stride);
    void (*attend)(const hr_attention *of, float *scratch);
} hr_row_kernels;

void hr_attend_avx512(const hr_attention *of, float *scratch);

/* Variants of this build, widest first, and whether this machine runs one. There may be none. */
int hr_num_row_variants(void);
const hr_row_kernels *hr_row_variant(int position);
int hr_row_variant_runs(int position);

#endif
