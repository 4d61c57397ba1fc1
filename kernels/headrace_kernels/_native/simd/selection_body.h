/* The k largest of a row, kept in a heap that lives in the answer's own rows: nothing is allocated.
 *
 * The heap's root is the worst entry kept: the lowest score and, among equals, the highest index. Positions are
 * visited in ascending order, so an equal score that comes later is always worse and only a strictly greater one
 * enters; a vector of scores that holds none costs one comparison.
 */
#include "kernels.h"
#include "softmax_body.h"

INLINE int is_worse(float score_a, int64_t index_a, float score_b, int64_t index_b) {
    return score_a < score_b || (score_a == score_b && index_a > index_b);
}

/* Puts (score, index) at `hole` or below it, where it belongs. */
static void sift_down(float *top, int64_t *indices, ptrdiff_t count, ptrdiff_t hole, float score, int64_t index) {
    for (;;) {
        ptrdiff_t child = 2 * hole + 1;
        if (child >= count) break;
        if (child + 1 < count && is_worse(top[child + 1], indices[child + 1], top[child], indices[child])) ++child;
        if (!is_worse(top[child], indices[child], score, index)) break;
        top[hole] = top[child];
        indices[hole] = indices[child];
        hole = child;
    }
    top[hole] = score;
    indices[hole] = index;
}

/* Leaves the row's `width` largest in (top, indices), best first. The row holds no NaN. */
static void select_row(const float *row, ptrdiff_t c, ptrdiff_t width, int64_t *indices, float *top) {
    HR_CHECK(1 <= width && width <= c);
    for (ptrdiff_t j = 0; j < width; ++j) {
        top[j] = row[j];
        indices[j] = j;
    }
    for (ptrdiff_t j = width / 2 - 1; j >= 0; --j) sift_down(top, indices, width, j, top[j], indices[j]);
    vf bar = vf_set(top[0]);
    for (ptrdiff_t j = width; j < c; j += LANES) {
        const ptrdiff_t lanes = c - j < LANES ? c - j : LANES;
        const vf x = lanes == LANES ? vf_load(row + j) : vf_load_part(row + j, lanes, -INFINITY);
        unsigned above = bits_greater(x, bar);
        if (!above) continue;
        do {
            const ptrdiff_t at = j + __builtin_ctz(above);
            above &= above - 1;
            /* The bar may have risen since the comparison. */
            if (row[at] > top[0]) sift_down(top, indices, width, 0, row[at], at);
        } while (above);
        bar = vf_set(top[0]);
    }
    for (ptrdiff_t end = width - 1; end > 0; --end) { /* heap sort: the worst goes last */
        const float score = top[end];
        const int64_t index = indices[end];
        top[end] = top[0];
        indices[end] = indices[0];
        sift_down(top, indices, end, 0, score, index);
    }
}

/* How many lead the row with score >= threshold; the rest becomes (-1, NaN). */
INLINE int64_t cut_row(ptrdiff_t width, float threshold, int64_t *indices, float *top) {
    ptrdiff_t kept = 0;
    while (kept < width && top[kept] >= threshold) ++kept;
    for (ptrdiff_t j = kept; j < width; ++j) {
        indices[j] = -1;
        top[j] = NAN;
    }
    return kept;
}

INLINE int has_nan(const float *row, ptrdiff_t c) {
    unsigned bad = 0;
    ptrdiff_t j = 0;
    for (; j + LANES <= c; j += LANES) {
        const vf x = vf_load(row + j);
        bad |= bits_not_less_equal(x, x);
    }
    for (; j < c; ++j) bad |= row[j] != row[j];
    return bad != 0;
}

static ptrdiff_t topk(const float *scores, ptrdiff_t n, ptrdiff_t c, ptrdiff_t width, float threshold,
                      int64_t *indices, float *top, int64_t *counts) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float *row = scores + i * c;
        if (has_nan(row, c)) return i;
        select_row(row, c, width, indices + i * width, top + i * width);
        counts[i] = cut_row(width, threshold, indices + i * width, top + i * width);
    }
    return -1;
}

static ptrdiff_t softmax_topk(const float *logits, ptrdiff_t n, ptrdiff_t c, ptrdiff_t width, float threshold,
                              int64_t *indices, float *top, int64_t *counts) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float *row = logits + i * c;
        float *best = top + i * width;
        const float peak = softmax_peak(row, c);
        if (peak != peak) return i;
        const vf center = vf_set(peak), sum = vf_set(softmax_sum(row, c, peak, NULL));
        select_row(row, c, width, indices + i * width, best);
        for (ptrdiff_t j = 0; j < width; j += LANES) {
            const ptrdiff_t lanes = width - j < LANES ? width - j : LANES;
            const vf x = vf_load_part(best + j, lanes, -INFINITY);
            vf_store_part(best + j, lanes, vf_div(vf_exp_nonpositive(vf_sub(x, center)), sum));
        }
        counts[i] = cut_row(width, threshold, indices + i * width, best);
    }
    return -1;
}

const hr_selection HR_ISA(hr_selection) = {topk, softmax_topk};
