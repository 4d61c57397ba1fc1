/* The table of kernels: one entry a family, one table a variant (portable, avx2, avx512, avx512_vnni, amx).
 *
 * Every function is pure C on raw rows: no allocation, no locks, no Python, so that a caller may drop the GIL.
 * Rows are C-contiguous; a count of 0 is allowed everywhere and its pointers are then not read.
 * A `ptrdiff_t` answer is the first row that may not be used (it holds NaN, say), or -1 when all is well.
 */
#ifndef HEADRACE_KERNELS_H
#define HEADRACE_KERNELS_H

#include "sampling.h"
#include "scan.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#define HR_X86 1
#else
#define HR_X86 0
#endif

#ifdef HR_DEBUG
#include <stdio.h>
#include <stdlib.h>
#define HR_CHECK(condition)                                                                      \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "headrace_kernels: %s:%d: %s\n", __FILE__, __LINE__, #condition);    \
            abort();                                                                             \
        }                                                                                        \
    } while (0)
#else
#define HR_CHECK(condition) ((void)0)
#endif

typedef struct {
    /* out[i] = exp(logits[i] - max) / sum. Bad row: NaN or +inf in it, or nothing but -inf. */
    ptrdiff_t (*softmax)(const float *logits, ptrdiff_t n, ptrdiff_t c, float *out);
    /* Elementwise 1 / (1 + exp(-x)). Answers the first NaN's position, or -1. */
    ptrdiff_t (*sigmoid)(const float *x, ptrdiff_t count, float *out);
} hr_activation;

typedef struct {
    /* The `width` largest of each row (1 <= width <= c), best first, ties to the lower index, those >= threshold
     * alone; the rest of the row is (-1, NaN). Bad row: NaN in it. */
    ptrdiff_t (*topk)(const float *scores, ptrdiff_t n, ptrdiff_t c, ptrdiff_t width, float threshold,
                      int64_t *indices, float *top, int64_t *counts);
    /* The same over softmax(logits), ranked by logit; scores equal softmax's bit for bit. Bad rows as softmax. */
    ptrdiff_t (*softmax_topk)(const float *logits, ptrdiff_t n, ptrdiff_t c, ptrdiff_t width, float threshold,
                              int64_t *indices, float *top, int64_t *counts);
} hr_selection;

typedef struct {
    /* Means over kept tokens (mask != 0), f32[b, d]; a row without kept tokens is zero. */
    ptrdiff_t (*mean_pool)(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                           int normalize, float *out);
    /* Maxima over kept tokens; a row without kept tokens is zero. */
    ptrdiff_t (*max_pool)(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                          float *out);
    /* The first (last = 0) or last (last = 1) kept token; zero if there is none. */
    ptrdiff_t (*token_pool)(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                            int last, float *out);
} hr_pooling;

typedef struct {
    /* The first row with NaN or an infinity, or -1. */
    ptrdiff_t (*first_nonfinite)(const float *x, ptrdiff_t n, ptrdiff_t d);
    /* x[i] / |x[i]|, zero rows stay zero; out may be x. Bad row: not finite. */
    ptrdiff_t (*normalize)(const float *x, ptrdiff_t n, ptrdiff_t d, float *out);
    /* 1 / |x[i]|; 0 for a zero row; NaN (and *extreme += 1) for a row whose squares leave f32's range. */
    ptrdiff_t (*inverse_norms)(const float *x, ptrdiff_t n, ptrdiff_t d, float *out, ptrdiff_t *extreme);
    /* out[i, j] = <a[i], b[j]>, times both inverse norms and clamped to [-1, 1] where they are given. The bits of
     * out[i, j] depend on these two rows alone. */
    void (*dot_matrix)(const float *a, const float *inverse_a, ptrdiff_t m, const float *b, const float *inverse_b,
                       ptrdiff_t n, ptrdiff_t d, float *out);
    /* out[i] = <a[i], b[i]>, scaled likewise: the same bits as the matrix's diagonal. */
    void (*dot_pairs)(const float *a, const float *inverse_a, const float *b, const float *inverse_b, ptrdiff_t n,
                      ptrdiff_t d, float *out);
} hr_similarity;

typedef struct {
    /* codes = round(x / scale), scale = max|x| / 127, halves to even. Bad row: not finite. */
    ptrdiff_t (*int8)(const float *x, ptrdiff_t n, ptrdiff_t d, int8_t *codes, float *scale);
} hr_quantization;

typedef struct {
    const char *isa;
    const hr_activation *activation;
    const hr_selection *selection;
    const hr_pooling *pooling;
    const hr_similarity *similarity;
    const hr_quantization *quantization;
    const hr_scan *scan;
    const hr_sampling *sampling;
} hr_kernels;

/* Variants that were compiled in, widest first; `hr_variant_runs` asks the CPU and the operating system. */
int hr_num_variants(void);
const hr_kernels *hr_variant(int position);
int hr_variant_runs(int position);

#endif
