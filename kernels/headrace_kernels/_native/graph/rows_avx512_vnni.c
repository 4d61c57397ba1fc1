/* Sums by VPDPBUSD: unsigned codes times signed weights. Codes are made unsigned by adding 128, and 128 times the
 * weights' sum is taken off again; that sum costs one instruction beside those of the rows. */
#include "rows.h"

#if HR_X86
#if !defined(__clang__)
#pragma GCC target("avx512vnni")
#endif
#include "vector_avx512.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#endif

#include "rows_avx512.h"

#define AT_ONCE 8

INLINE void sum_block(const hr_rows *rows, ptrdiff_t row, int count, const int8_t *block, __m512i *sums) {
    const int8_t *codes = rows->codes + row * rows->stride;
    const __m512i ones = _mm512_set1_epi8((char)128);
    __m512i taken = _mm512_setzero_si512();
    for (int i = 0; i < count; ++i) sums[i] = _mm512_setzero_si512();
    for (ptrdiff_t k = 0; k < rows->width; k += 4) {
        const __m512i weights = _mm512_loadu_si512(block + k * ROWS_BLOCK);
        taken = _mm512_dpbusd_epi32(taken, ones, weights);
        for (int i = 0; i < count; ++i) {
            int32_t four;
            memcpy(&four, codes + i * rows->stride + k, 4);
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi32(four ^ (int32_t)0x80808080), weights);
        }
    }
    for (int i = 0; i < count; ++i) sums[i] = _mm512_sub_epi32(sums[i], taken);
}

INLINE void sum_and_put(const hr_rows *rows, ptrdiff_t row, int count, int gated, int pair, const int8_t *block,
                        const float *scales, float *out, ptrdiff_t out_stride) {
    __m512i first[AT_ONCE], second[AT_ONCE];
    sum_block(rows, row, count, block, first);
    if (pair) sum_block(rows, row, count, block + rows->width * ROWS_BLOCK, second);
    for (int i = 0; i < count; ++i, ++row) {
        if (pair) put(gated, first[i], second[i], scales, rows->scales[row], out + row * out_stride);
        else vf_store(out + row * out_stride, scaled(first[i], scales, rows->scales[row]));
    }
}

INLINE void all_rows(const hr_rows *rows, int gated, int pair, const int8_t *block, const float *scales, float *out,
                     ptrdiff_t out_stride) {
    ptrdiff_t row = 0;
    for (; row + AT_ONCE <= rows->count; row += AT_ONCE)
        sum_and_put(rows, row, AT_ONCE, gated, pair, block, scales, out, out_stride);
    for (; row < rows->count; ++row) sum_and_put(rows, row, 1, gated, pair, block, scales, out, out_stride);
}

static void linear(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                   float *out, ptrdiff_t out_stride) {
    const ptrdiff_t size = rows->width * ROWS_BLOCK;
    ptrdiff_t block = first;
    for (; block + 2 <= last; block += 2)
        all_rows(rows, 0, 1, weights + block * size, scales + block * ROWS_BLOCK, out + block * ROWS_BLOCK, out_stride);
    if (block < last)
        all_rows(rows, 0, 0, weights + block * size, scales + block * ROWS_BLOCK, out + block * ROWS_BLOCK, out_stride);
}

static void gated(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                  float *out, ptrdiff_t out_stride) {
    const ptrdiff_t size = 2 * rows->width * ROWS_BLOCK;
    for (ptrdiff_t pair = first; pair < last; ++pair)
        all_rows(rows, 1, 1, weights + pair * size, scales + pair * 2 * ROWS_BLOCK, out + pair * ROWS_BLOCK,
                 out_stride);
}

const hr_row_kernels hr_rows_avx512_vnni = {"avx512_vnni", quantize, linear, gated, hr_attend_avx512};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#include "vector_end.h"
#endif
