/* Codes by VNNI: four products of u8 and s8 and their sum in one instruction, exactly. */
#include "kernels.h"

#if HR_X86
#if !defined(__clang__)
#pragma GCC target("avx512vnni")
#endif
#include "vector_avx512.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#endif

#include "scan_code_bar.h"

#define AHEAD_BYTES 4096

INLINE __m512i quad(const int8_t *four) {
    int32_t value;
    memcpy(&value, four, sizeof value);
    return _mm512_set1_epi32(value);
}

/* Four blocks side by side: near streams read faster than one. */
#define EACH_BLOCK(DO) DO(0) DO(1) DO(2) DO(3)
#define BLOCK_ZERO(b)                                       \
    __m512i high##b = _mm512_set1_epi32(query->high_bias); \
    __m512i low##b = _mm512_set1_epi32(query->low_bias);
#define BLOCK_STEP(b)                                                   \
    {                                                                   \
        const uint8_t *at = codes + b * size + 64 * j;                  \
        const __m512i x = _mm512_load_si512(at);                        \
        PREFETCH(at + AHEAD_BYTES);                                     \
        high##b = _mm512_dpbusd_epi32(high##b, x, yh);                  \
        low##b = _mm512_dpbusd_epi32(low##b, x, yl);                    \
    }
#define BLOCK_CHECK(b)                                                                                       \
    {                                                                                                        \
        const float *scales = (const float *)(codes + b * size + 64 * num_quads);                            \
        PREFETCH((const char *)scales + AHEAD_BYTES);                                                        \
        const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low##b), unit,                                 \
                                           _mm512_add_ps(_mm512_cvtepi32_ps(high##b), slack));               \
        const __m512 value = _mm512_mul_ps(sum, _mm512_load_ps(scales));                                     \
        const unsigned mask = bits_not_less(value, _mm512_set1_ps(best->threshold));                         \
        if (__builtin_expect(mask != 0, 0)) {                                                                \
            float values[SCAN_BLOCK];                                                                        \
            vf_store(values, value);                                                                         \
            hr_best_push(best, (block + b) * SCAN_BLOCK, values, mask);                                      \
        }                                                                                                    \
    }

void hr_scan_codes_vnni(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last,
                        hr_best *best) {
    const ptrdiff_t size = block_bytes(items), num_quads = items->num_quads;
    const __m512 slack = _mm512_set1_ps(query->slack), unit = _mm512_set1_ps(1.0f / 254.0f);
    for (ptrdiff_t block = first; block < last; block += SCAN_STEP) {
        const uint8_t *codes = items->blocks + block * size;
        EACH_BLOCK(BLOCK_ZERO)
        for (ptrdiff_t j = 0; j < num_quads; ++j) {
            const __m512i yh = quad(query->high + 4 * j), yl = quad(query->low + 4 * j);
            EACH_BLOCK(BLOCK_STEP)
        }
        EACH_BLOCK(BLOCK_CHECK)
    }
}

/* Two blocks by eight queries in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define TILE_ZERO(q)                                            \
    __m512i a##q = _mm512_set1_epi32(batch->bias[tile * 8 + q]); \
    __m512i b##q = a##q;
#define TILE_STEP(q)                                    \
    {                                                   \
        const __m512i y = _mm512_set1_epi32(quads[q]);  \
        a##q = _mm512_dpbusd_epi32(a##q, x0, y);        \
        b##q = _mm512_dpbusd_epi32(b##q, x1, y);        \
    }
#define TILE_CHECK(q)                                                                                     \
    {                                                                                                     \
        const int at = tile * 8 + q;                                                                      \
        const unsigned mask = code_mask(&bar, at, inverse0, a##q) | code_mask(&bar, at, inverse1, b##q) << 16; \
        if (__builtin_expect(mask != 0, 0)) {                                                             \
            push_codes(&bar, batch, at, block, scales0, a##q, mask & 0xffff, best);                        \
            push_codes(&bar, batch, at, block + 1, scales1, b##q, mask >> 16, best);                       \
        }                                                                                                 \
    }

void hr_scan_code_tiles_vnni(const hr_items *items, const hr_code_batch *batch, ptrdiff_t first, ptrdiff_t last,
                             hr_best *best) {
    const ptrdiff_t size = block_bytes(items), num_quads = items->num_quads;
    const int num_tiles = batch->num_tiles;
    /* What the next two blocks hold is asked for evenly by all steps of all tiles. */
    const ptrdiff_t lines = (2 * size / 64 + num_tiles * num_quads - 1) / (num_tiles * num_quads);
    code_bar bar;
    raise_bars(&bar, items, batch, num_tiles * 8, 0, best);
    for (ptrdiff_t block = first; block < last; block += 2) {
        const uint8_t *codes = items->blocks + block * size;
        const char *next = (const char *)codes + 4 * size, *end = next + 2 * size;
        const __m512 scales0 = _mm512_load_ps((const float *)(codes + 64 * num_quads));
        const __m512 scales1 = _mm512_load_ps((const float *)(codes + size + 64 * num_quads));
        const __m512 inverse0 = inverse_of(scales0), inverse1 = inverse_of(scales1);
        for (int tile = 0; tile < num_tiles; ++tile) {
            const int32_t *quads = batch->quads + tile * num_quads * 8;
            EACH_QUERY(TILE_ZERO)
            for (ptrdiff_t j = 0; j < num_quads; ++j, quads += 8) {
                for (ptrdiff_t line = 0; line < lines && next < end; ++line, next += 64) PREFETCH(next);
                const __m512i x0 = _mm512_load_si512(codes + 64 * j), x1 = _mm512_load_si512(codes + size + 64 * j);
                EACH_QUERY(TILE_STEP)
            }
            EACH_QUERY(TILE_CHECK)
        }
    }
}

void hr_scan_rows_avx512(const hr_items *items, const double *query, ptrdiff_t first, ptrdiff_t last, hr_best *best);
void hr_gather_rows_avx512(const hr_items *items, const double *query, const int32_t *rows, ptrdiff_t count,
                           float *scores);
void hr_scan_tiles_avx512(const hr_items *items, const float *queries, int num_queries, ptrdiff_t first,
                          ptrdiff_t last, hr_best *best);

const hr_scan hr_scan_avx512_vnni = {"avx512_vnni",        hr_scan_rows_avx512, hr_gather_rows_avx512,
                                     hr_scan_tiles_avx512, hr_scan_codes_vnni,  hr_scan_code_tiles_vnni, 2 * LANES, 1};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#include "vector_end.h"
#endif
