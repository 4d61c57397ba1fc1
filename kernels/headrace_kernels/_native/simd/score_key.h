/* A score and its index as one 64-bit key: larger scores first and, among equal ones, lower indices. */
#ifndef HR_SCORE_KEY_H
#define HR_SCORE_KEY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t key_of(float score, ptrdiff_t index) {
    const float plain = score + 0.0f; /* -0 becomes +0: they are equal scores */
    uint32_t bits;
    memcpy(&bits, &plain, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~(uint32_t)index;
}

static inline ptrdiff_t index_of(uint64_t key) { return (ptrdiff_t)(uint32_t)~(uint32_t)key; }

#endif
