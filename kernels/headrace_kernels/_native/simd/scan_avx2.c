#include "kernels.h"

#if HR_X86
#include "vector_avx2.h"

typedef struct {
    __m256d low, high;
} d8;

INLINE d8 d8_zero(void) { return (d8){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
INLINE d8 d8_add_products(d8 sums, const float *x, const double *y) {
    sums.low = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(x)), _mm256_loadu_pd(y), sums.low);
    sums.high = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + 4)), _mm256_loadu_pd(y + 4), sums.high);
    return sums;
}

#include "scan_score4.h"

INLINE void d8_score4(d8 a, d8 b, d8 c, d8 d, float *out) {
    score_quarters(_mm256_add_pd(a.low, a.high), _mm256_add_pd(b.low, b.high), _mm256_add_pd(c.low, c.high),
                   _mm256_add_pd(d.low, d.high), out);
}

#include "scan_body.h"

/* u8 x s8 pairs do not fit the 16 bits that vpmaddubsw has, so both are widened first. */
#define WIDE(p) _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(p)))
INLINE __m256i wide_query(const int8_t *four) {
    int32_t quad;
    memcpy(&quad, four, sizeof quad);
    return _mm256_cvtepi8_epi16(_mm_set1_epi32(quad));
}
#define CODE_STEP(part)                                                                             \
    {                                                                                               \
        const __m256i x = WIDE(codes + 16 * part);                                                  \
        high##part = _mm256_add_epi32(high##part, _mm256_madd_epi16(x, yh));                        \
        low##part = _mm256_add_epi32(low##part, _mm256_madd_epi16(x, yl));                          \
    }

/* Each vector holds two partial sums of four rows; two vectors make eight rows' sums. */
INLINE __m256i eight_sums(__m256i a, __m256i b, int32_t bias) {
    const __m256i mixed = _mm256_hadd_epi32(a, b); /* rows 0 1, 4 5, 2 3, 6 7 */
    return _mm256_add_epi32(_mm256_permute4x64_epi64(mixed, 0xd8), _mm256_set1_epi32(bias));
}

INLINE __m256 eight_values(__m256i high, __m256i low, const float *scales, float slack) {
    const __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), _mm256_set1_ps(1.0f / 254.0f),
                                       _mm256_add_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(slack)));
    return _mm256_mul_ps(sum, _mm256_load_ps(scales));
}

void hr_scan_codes_avx2(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last,
                        hr_best *best) {
    for (ptrdiff_t block = first; block < last; ++block) {
        const uint8_t *codes = items->blocks + block * block_bytes(items);
        const float *scales = (const float *)(codes + 64 * items->num_quads);
        __m256i high0 = _mm256_setzero_si256(), high1 = high0, high2 = high0, high3 = high0;
        __m256i low0 = high0, low1 = high0, low2 = high0, low3 = high0;
        float values[SCAN_BLOCK];
        for (ptrdiff_t j = 0; j < items->num_quads; ++j, codes += 64) {
            const __m256i yh = wide_query(query->high + 4 * j), yl = wide_query(query->low + 4 * j);
            PREFETCH(codes + AHEAD_BYTES);
            CODE_STEP(0) CODE_STEP(1) CODE_STEP(2) CODE_STEP(3)
        }
        PREFETCH(codes + AHEAD_BYTES);
        _mm256_storeu_ps(values, eight_values(eight_sums(high0, high1, query->high_bias),
                                              eight_sums(low0, low1, query->low_bias), scales, query->slack));
        _mm256_storeu_ps(values + 8, eight_values(eight_sums(high2, high3, query->high_bias),
                                                  eight_sums(low2, low3, query->low_bias), scales + 8, query->slack));
        const unsigned mask = reaching(values, best->threshold);
        if (__builtin_expect(mask != 0, 0)) hr_best_push(best, block * SCAN_BLOCK, values, mask);
    }
}

const hr_scan hr_scan_avx2 = {"avx2", scan_rows, gather_rows, scan_tiles, hr_scan_codes_avx2, NULL, TILE_QUERIES, 1};

#include "vector_end.h"
#endif
