/* Candidates of one query: a buffer that takes what passes the threshold, and that is pruned when it is full.
 *
 * With exact values the k largest keys stay. With bounds every row stays whose upper bound reaches the k-th largest
 * lower bound: at least k rows score that much, so a row below it is not among the k best. The buffer starts small,
 * which raises the threshold early, and doubles when pruning leaves it half full.
 */
#include "scan_best.h"

#include <math.h>
#include <stdlib.h>

#define MAX_CANDIDATES 32768 /* beyond these (and 4 k) an exact scan is cheaper than scoring them again */

static inline void swap(uint64_t *a, uint64_t *b) {
    const uint64_t kept = *a;
    *a = *b;
    *b = kept;
}

void hr_select_keys(uint64_t *keys, ptrdiff_t n, ptrdiff_t k) {
    ptrdiff_t low = 0, high = n - 1;
    uint64_t noise = 0x9e3779b97f4a7c15u;
    const ptrdiff_t wanted = k - 1;
    while (low < high) {
        /* The middle of three keys at scattered places: no fixed order of rows makes this quadratic. */
        uint64_t sample[3];
        for (int i = 0; i < 3; ++i) {
            noise = noise * 6364136223846793005u + 1442695040888963407u;
            sample[i] = keys[low + (ptrdiff_t)((noise >> 33) % (uint64_t)(high - low + 1))];
        }
        if (sample[0] < sample[1]) swap(&sample[0], &sample[1]);
        if (sample[1] < sample[2]) swap(&sample[1], &sample[2]);
        if (sample[0] < sample[1]) swap(&sample[0], &sample[1]);
        const uint64_t pivot = sample[1];
        ptrdiff_t i = low, j = high;
        while (i <= j) {
            while (keys[i] > pivot) ++i;
            while (keys[j] < pivot) --j;
            if (i > j) break;
            swap(&keys[i++], &keys[j--]);
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else return;
    }
}

static int descending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

void hr_sort_keys(uint64_t *keys, ptrdiff_t n) {
    if (n > 32) {
        qsort(keys, (size_t)n, sizeof *keys, descending);
        return;
    }
    for (ptrdiff_t i = 1; i < n; ++i) {
        const uint64_t key = keys[i];
        ptrdiff_t j = i;
        for (; j && keys[j - 1] < key; --j) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

static double lower_bound(const hr_best *best, uint64_t key) {
    const int32_t row = row_of(key);
    const double scale = best->scales ? best->scales[(row >> 4) * best->scale_stride + (row & 15)] : 1.0;
    return (double)value_of(key) - best->width * scale;
}

static float rounded_down(double x) {
    const float y = (float)x;
    return (double)y > x ? nextafterf(y, -INFINITY) : y;
}

static void prune_bounds(hr_best *best, uint64_t *bounds) {
    for (int32_t i = 0; i < best->count; ++i)
        bounds[i] = key_of(rounded_down(lower_bound(best, best->keys[i])), 0);
    hr_select_keys(bounds, best->count, best->k);
    const float reached = value_of(bounds[best->k - 1]);
    if (reached > best->threshold) best->threshold = reached;
    int32_t kept = 0;
    for (int32_t i = 0; i < best->count; ++i)
        if (value_of(best->keys[i]) >= best->threshold) best->keys[kept++] = best->keys[i];
    best->count = kept;
}

void hr_best_prune(hr_best *best) {
    if (best->count < best->k) return;
    if (best->width == 0.0) {
        hr_select_keys(best->keys, best->count, best->k);
        best->count = (int32_t)best->k;
        best->threshold = value_of(best->keys[best->k - 1]);
        return;
    }
    uint64_t few[512], *bounds = few;
    if (best->count > 512 && !(bounds = malloc((size_t)best->count * sizeof *bounds))) {
        best->overflow = 1;
        return;
    }
    prune_bounds(best, bounds);
    if (bounds != few) free(bounds);
}

/* Makes room for a block's worth of keys, or gives the query up. */
static void make_room(hr_best *best) {
    hr_best_prune(best);
    if (best->overflow || 2 * (int64_t)best->count <= best->trigger) return;
    const int64_t most = 4 * (int64_t)best->k + MAX_CANDIDATES, wanted = 2 * (int64_t)best->trigger;
    uint64_t *keys = wanted <= most ? malloc((size_t)(wanted + SCAN_BLOCK) * sizeof *keys) : NULL;
    if (!keys) {
        /* A buffer that stays nearly full would be pruned at every step. */
        best->overflow = best->width != 0.0 && 4 * (int64_t)best->count > 3 * (int64_t)best->trigger;
        return;
    }
    memcpy(keys, best->keys, (size_t)best->count * sizeof *keys);
    if (best->grown) free(best->keys);
    best->keys = keys;
    best->grown = 1;
    best->capacity = (int32_t)(wanted + SCAN_BLOCK);
    best->trigger = (int32_t)wanted;
}

static int is_excluded(const hr_best *best, int64_t row) {
    ptrdiff_t low = 0, high = best->num_excluded;
    while (low < high) {
        const ptrdiff_t middle = low + (high - low) / 2;
        if (best->excluded[middle] < row) low = middle + 1;
        else high = middle;
    }
    return low < best->num_excluded && best->excluded[low] == row;
}

void hr_best_push(hr_best *best, ptrdiff_t first, const float *values, unsigned mask) {
    if (best->overflow) {
        best->threshold = INFINITY; /* nothing more passes: the query is scanned again */
        return;
    }
    for (; mask; mask &= mask - 1) {
        const int lane = __builtin_ctz(mask);
        const ptrdiff_t row = first + lane;
        if (!(values[lane] >= best->threshold) || row >= best->num_rows) continue;
        if (best->allowed && !(best->allowed[row >> 6] >> (row & 63) & 1)) continue;
        if (best->num_excluded && is_excluded(best, row)) continue;
        best->keys[best->count++] = key_of(values[lane], (int32_t)row);
    }
    if (best->count >= best->trigger) make_room(best);
}
