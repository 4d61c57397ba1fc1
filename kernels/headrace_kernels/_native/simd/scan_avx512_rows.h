/* What scan_body.h asks of AVX-512. */
#include "vector_avx512.h"

typedef __m512d d8;

INLINE d8 d8_zero(void) { return _mm512_setzero_pd(); }
INLINE d8 d8_add_products(d8 sums, const float *x, const double *y) {
    return _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x)), _mm512_loadu_pd(y), sums);
}

#include "scan_score4.h"

INLINE __m256d halves(d8 sums) {
    return _mm256_add_pd(_mm512_castpd512_pd256(sums), _mm512_extractf64x4_pd(sums, 1));
}
INLINE void d8_score4(d8 a, d8 b, d8 c, d8 d, float *out) {
    score_quarters(halves(a), halves(b), halves(c), halves(d), out);
}

/* Four quarters of a vector from four rows: the loads do half of the transposition. */
INLINE __m512 four_rows(const float *x, ptrdiff_t step) {
    __m512 v = _mm512_castps128_ps512(_mm_load_ps(x));
    v = _mm512_insertf32x4(v, _mm_load_ps(x + step), 1);
    v = _mm512_insertf32x4(v, _mm_load_ps(x + 2 * step), 2);
    return _mm512_insertf32x4(v, _mm_load_ps(x + 3 * step), 3);
}

/* Rows r, r + 4, r + 8, r + 12 share a vector, so that a 4 x 4 transposition within quarters finishes it. */
INLINE void fill_panel(const float *rows, ptrdiff_t stride, float *panel) {
    for (ptrdiff_t half = 0; half < 32; half += 16)
        for (ptrdiff_t j = 0; j < stride; j += 4) {
            const float *x = rows + half * stride + j;
            float *y = panel + j * 32 + half;
            const __m512 a = four_rows(x, 4 * stride), b = four_rows(x + stride, 4 * stride);
            const __m512 c = four_rows(x + 2 * stride, 4 * stride), d = four_rows(x + 3 * stride, 4 * stride);
            const __m512 ab = _mm512_unpacklo_ps(a, b), ba = _mm512_unpackhi_ps(a, b);
            const __m512 cd = _mm512_unpacklo_ps(c, d), dc = _mm512_unpackhi_ps(c, d);
            _mm512_storeu_ps(y, _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)));
            _mm512_storeu_ps(y + 32, _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
            _mm512_storeu_ps(y + 64, _mm512_shuffle_ps(ba, dc, _MM_SHUFFLE(1, 0, 1, 0)));
            _mm512_storeu_ps(y + 96, _mm512_shuffle_ps(ba, dc, _MM_SHUFFLE(3, 2, 3, 2)));
        }
}
