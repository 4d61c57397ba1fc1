/* Which sums of codes may make a candidate, for a batch of queries.
 *
 * A value is scale * (sum + bias + slack), and it is wanted where it reaches the threshold. Dividing by the scale
 * once a block leaves one multiply-add and one comparison a query: sum >= threshold / scale - bias - slack. The
 * guard is more than that rounding can be; the value itself decides once it is there.
 */
#include "scan.h"

#define PREFETCH(address) __builtin_prefetch((const void *)(address), 0, 3)

typedef struct {
    float threshold[SCAN_QUERIES], offset[SCAN_QUERIES];
} code_bar;

/* biased: whether sums lack their bias yet. */
INLINE void raise_bars(code_bar *bar, const hr_items *items, const hr_code_batch *batch, int count, int biased,
                       const hr_best *best) {
    const float guard = (float)items->num_quads / 4 + 1;
    for (int q = 0; q < count; ++q) {
        bar->threshold[q] = best[q].threshold;
        bar->offset[q] = -(batch->slack[q] + guard) - (biased ? (float)batch->bias[q] : 0.0f);
    }
}

/* Rows past the end have scale 0; their inverse is infinite, and whatever passes is dropped for its number. */
INLINE __m512 inverse_of(__m512 scales) { return _mm512_div_ps(_mm512_set1_ps(1.0f), scales); }

INLINE unsigned code_mask(const code_bar *bar, int q, __m512 inverse, __m512i sums) {
    const __m512 least = _mm512_fmadd_ps(_mm512_set1_ps(bar->threshold[q]), inverse, _mm512_set1_ps(bar->offset[q]));
    return _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(sums), least, _CMP_GE_OQ);
}

/* sums have their bias by now. */
INLINE void push_codes(code_bar *bar, const hr_code_batch *batch, int q, ptrdiff_t block, __m512 scales, __m512i sums,
                       unsigned mask, hr_best *best) {
    float values[SCAN_BLOCK];
    if (!mask) return;
    vf_store(values, _mm512_mul_ps(scales, _mm512_add_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(batch->slack[q]))));
    hr_best_push(best + q, block * SCAN_BLOCK, values, mask);
    bar->threshold[q] = best[q].threshold;
}
