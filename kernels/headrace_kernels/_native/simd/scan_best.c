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
            sample[i] = keys[low + (ptrdiff_t)((noise >> 32) * (uint64_t)(high - low + 1) >> 32)];
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

/* Below value - width * scale by more than f32 can round: 2^-24 of it, or half of the least denormal. */
static int32_t floor_of(const hr_best *best, float value, ptrdiff_t row) {
    if (best->width == 0.0) return order_of(value);
    const double scale = best->scales ? best->scales[(row >> 4) * best->scale_stride + (row & 15)] : 1.0;
    const double bound = (double)value - best->width * scale;
    return order_of((float)(bound - fabs(bound) * 0x1p-23 - 1e-44));
}

static int32_t count_reaching(const int32_t *floors, int32_t n, int32_t least) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; ++i) count += floors[i] >= least;
    return count;
}

/* The largest integer that at least k floors reach, and perhaps a lower one that just k of them reach; `least` where
 * fewer reach even that. Halving an interval needs no order of the floors and no branch on them. */
static int32_t reached_by(const int32_t *floors, int32_t n, ptrdiff_t k, int32_t least) {
    int32_t low = least, high = INT32_MIN, reaching = count_reaching(floors, n, least);
    for (int32_t i = 0; i < n; ++i) high = floors[i] > high ? floors[i] : high;
    if (reaching < k) return least;
    /* At least k reach `low`; fewer than k, or few enough to stop, reach more than `high`. */
    while (low < high && reaching > k) {
        const int32_t middle = high - (int32_t)(((uint32_t)high - (uint32_t)low) / 2);
        const int32_t count = count_reaching(floors, n, middle);
        if (count >= k) {
            low = middle;
            reaching = count;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

void hr_best_prune(hr_best *best) {
    if (best->count < best->k) return;
    const int32_t reached = reached_by(best->floors, best->count, best->k, order_of(best->threshold));
    const float threshold = of_order(reached);
    if (threshold > best->threshold) best->threshold = threshold;
    int32_t kept = 0;
    for (int32_t i = 0; i < best->count; ++i) {
        const uint64_t key = best->keys[i];
        best->keys[kept] = key;
        best->floors[kept] = best->floors[i];
        kept += value_of(key) >= best->threshold;
    }
    best->count = kept;
    /* Of many rows with the k-th score the lower ones stay. */
    if (best->width != 0.0 || kept <= best->k || 2 * (int64_t)kept <= best->trigger) return;
    hr_select_keys(best->keys, kept, best->k);
    best->count = (int32_t)best->k;
    for (int32_t i = 0; i < best->count; ++i) best->floors[i] = order_of(value_of(best->keys[i]));
}

/* Makes room for a block's worth of keys, or gives the query up. */
static void make_room(hr_best *best) {
    hr_best_prune(best);
    if (best->overflow || 2 * (int64_t)best->count <= best->trigger) return;
    const int64_t most = 4 * (int64_t)best->k + MAX_CANDIDATES, wanted = 2 * (int64_t)best->trigger;
    const size_t capacity = (size_t)wanted + SCAN_BLOCK;
    uint64_t *keys = wanted <= most ? malloc(capacity * HR_CANDIDATE_BYTES) : NULL;
    if (!keys) {
        /* A buffer that stays nearly full would be pruned at every step. */
        best->overflow = best->width != 0.0 && 4 * (int64_t)best->count > 3 * (int64_t)best->trigger;
        return;
    }
    int32_t *floors = (int32_t *)(keys + capacity);
    memcpy(keys, best->keys, (size_t)best->count * sizeof *keys);
    memcpy(floors, best->floors, (size_t)best->count * sizeof *floors);
    if (best->grown) free(best->keys);
    best->keys = keys;
    best->floors = floors;
    best->grown = 1;
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
        best->floors[best->count] = floor_of(best, values[lane], row);
        best->keys[best->count++] = key_of(values[lane], (int32_t)row);
    }
    if (best->count >= best->trigger) make_room(best);
}
