/* Keys that order as (score, then the lower row), integers that order as floats, and the k-th largest of many. */
#ifndef HEADRACE_SCAN_BEST_H
#define HEADRACE_SCAN_BEST_H

#include "scan.h"

#include <string.h>

static inline uint64_t key_of(float value, int32_t row) {
    const float plain = value + 0.0f; /* -0 becomes +0: they are equal scores */
    uint32_t bits;
    memcpy(&bits, &plain, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~(uint32_t)row;
}

static inline int32_t row_of(uint64_t key) { return (int32_t)~(uint32_t)key; }

static inline float value_of(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    float value;
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* -0 is just below +0 here. */
static inline int32_t order_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float of_order(int32_t order) {
    float value;
    order ^= order >> 31 & 0x7fffffff;
    memcpy(&value, &order, sizeof value);
    return value;
}

/* Moves the k largest of n distinct or equal keys to the front, the k-th largest at k - 1. 1 <= k <= n. */
void hr_select_keys(uint64_t *keys, ptrdiff_t n, ptrdiff_t k);
/* Sorts keys, largest first. */
void hr_sort_keys(uint64_t *keys, ptrdiff_t n);
/* A key and its floor. */
#define HR_CANDIDATE_BYTES (sizeof(uint64_t) + sizeof(int32_t))
/* Drops candidates that cannot be among the k best, and raises the threshold. */
void hr_best_prune(hr_best *best);

#endif
