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
