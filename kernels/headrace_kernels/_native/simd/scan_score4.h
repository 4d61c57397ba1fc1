/* The last two additions of four scores at once, where vectors of four f64 are to be had. */

/* a holds sums (0+4, 1+5, 2+6, 3+7) of one row, and so on; out[r] = (s0 + s2) + (s1 + s3), rounded to f32. */
INLINE void score_quarters(__m256d a, __m256d b, __m256d c, __m256d d, float *out) {
    const __m256d ab = _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
    const __m256d cd = _mm256_add_pd(_mm256_permute2f128_pd(c, d, 0x20), _mm256_permute2f128_pd(c, d, 0x31));
    const __m128 acbd = _mm256_cvtpd_ps(_mm256_hadd_pd(ab, cd));
    _mm_storeu_ps(out, _mm_shuffle_ps(acbd, acbd, _MM_SHUFFLE(3, 1, 2, 0)));
}
