/* What softmax and its fused top-k share: a row's maximum and the sum of its exponentials. */
#ifndef HR_SOFTMAX_BODY_H
#define HR_SOFTMAX_BODY_H

#include <math.h>

#include "exp_body.h"

/* The row's maximum, or NaN for a row without a softmax: NaN or +inf in it, or nothing but -inf. */
INLINE float softmax_peak(const float *row, ptrdiff_t c) {
    vf peak = vf_set(-INFINITY);
    unsigned bad = 0;
    const vf top = vf_set(INFINITY);
    ptrdiff_t j = 0;
    for (; j + LANES <= c; j += LANES) {
        const vf x = vf_load(row + j);
        bad |= bits_not_less(x, top);
        peak = vf_max(x, peak);
    }
    if (j < c) {
        const vf x = vf_load_part(row + j, c - j, -INFINITY);
        bad |= bits_not_less(x, top);
        peak = vf_max(x, peak);
    }
    const float largest = vf_largest(peak);
    return bad || largest == -INFINITY ? NAN : largest;
}

/* Vectors summed in f32 before they join the f64 total: bounds the sum's error whatever c is. */
#define SUM_BLOCK (64 * LANES)

/* sum_j exp(row[j] - peak); the terms go to `terms` unless it is NULL. One loop serves both, so that softmax and
 * softmax_topk divide by the same bits. */
INLINE float softmax_sum(const float *row, ptrdiff_t c, float peak, float *terms) {
    double total = 0.0;
    const vf center = vf_set(peak);
    for (ptrdiff_t start = 0; start < c; start += SUM_BLOCK) {
        const ptrdiff_t end = c - start < SUM_BLOCK ? c : start + SUM_BLOCK;
        vf sum = vf_set(0.0f);
        ptrdiff_t j = start;
        for (; j + LANES <= end; j += LANES) {
            const vf term = vf_exp_nonpositive(vf_sub(vf_load(row + j), center));
            sum = vf_add(sum, term);
            if (terms) vf_store(terms + j, term);
        }
        if (j < end) { /* the absent lanes are -inf, whose exponential is exactly 0 */
            const vf term = vf_exp_nonpositive(vf_sub(vf_load_part(row + j, end - j, -INFINITY), center));
            sum = vf_add(sum, term);
            if (terms) vf_store_part(terms + j, end - j, term);
        }
        total += (double)vf_sum(sum);
    }
    return (float)total;
}

#endif
