/* The k largest of a row, kept in a heap that lives in the answer's own row of indices: nothing is allocated.
 *
 * An entry is one 64-bit key: the score's bits, turned so that they order as the scores do, above the complement of
 * the index. One comparison then ranks by score and, among equals, puts the lower index first; the heap's root is
 * the worst key kept. Positions are visited in ascending order, so an equal score that comes later is always worse
 * and only a strictly greater one enters; a vector of scores that holds none costs one comparison.
 */
#include "kernels.h"
#include "score_key.h"
#include "softmax_body.h"

/* Puts `key` at `hole` or below it, where it belongs in the heap of `count` keys. */
INLINE void sift_down(uint64_t *heap, ptrdiff_t count, ptrdiff_t hole, uint64_t key) {
    ptrdiff_t child;
    while ((child = 2 * hole + 1) < count) {
        /* No branch on which child is the worse: it would be guessed wrong half the time. */
        child += child + 1 < count && heap[child + 1] < heap[child];
        if (heap[child] >= key) break;
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = key;
}

/* Leaves the row's `width` largest in (top, indices), best first. The row holds no NaN. */
static void select_row(const float *row, ptrdiff_t c, ptrdiff_t width, int64_t *indices, float *top) {
    HR_CHECK(1 <= width && width <= c && c <= INT32_MAX);
    uint64_t *heap = (uint64_t *)indices; /* the unsigned twin of a type may alias it */
    for (ptrdiff_t j = 0; j < width; ++j) heap[j] = key_of(row[j], j);
    for (ptrdiff_t j = width / 2 - 1; j >= 0; --j) sift_down(heap, width, j, heap[j]);
    float least = row[index_of(heap[0])];
    vf bar = vf_set(least);
    for (ptrdiff_t j = width; j < c; j += LANES) {
        const ptrdiff_t lanes = c - j < LANES ? c - j : LANES;
        const vf x = lanes == LANES ? vf_load(row + j) : vf_load_part(row + j, lanes, -INFINITY);
        unsigned above = bits_greater(x, bar);
        if (!above) continue;
        do {
            const ptrdiff_t at = j + __builtin_ctz(above);
            above &= above - 1;
            if (!(row[at] > least)) continue; /* the bar has risen since the comparison */
            sift_down(heap, width, 0, key_of(row[at], at));
            least = row[index_of(heap[0])];
        } while (above);
        bar = vf_set(least);
    }
    for (ptrdiff_t end = width - 1; end > 0; --end) { /* heap sort: the worst goes last */
        const uint64_t key = heap[end];
        heap[end] = heap[0];
        sift_down(heap, end, 0, key);
    }
    for (ptrdiff_t j = 0; j < width; ++j) {
        indices[j] = (int64_t)index_of(heap[j]);
        top[j] = row[indices[j]];
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
