/* Codes by AMX: 16 queries by 16 rows by 64 codes in one instruction. It pays from two tiles of queries on; below,
 * and for everything else, this variant is avx512_vnni. */
#include "kernels.h"

#if HR_X86
#if !defined(__clang__)
#pragma GCC target("amx-tile,amx-int8")
#endif
#include "vector_avx512.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8"))), apply_to = function)
#endif

#include "scan_amx.h"
#include "scan_code_bar.h"

#define TILE_BYTES 1024

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t num_rows[16];
} tile_shapes;

static void begin_tiles(void) {
    tile_shapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        shapes.row_bytes[tile] = 64;
        shapes.num_rows[tile] = 16;
    }
    _tile_loadconfig(&shapes);
}

typedef struct {
    _Alignas(64) int32_t sums[4][SCAN_BLOCK * SCAN_BLOCK]; /* queries 0-15 and 16-31, of the first and second block */
} tile_sums;

/* Sums of two blocks with 16 queries, or 32 where `both`. Past the last code of a row the queries' codes are zero,
 * so that what a tile reads there counts nothing. */
INLINE void sum_tiles(const uint8_t *first, const uint8_t *second, ptrdiff_t steps, const int8_t *matrix,
                      ptrdiff_t stride, int both, tile_sums *out) {
    _tile_zero(0);
    _tile_zero(1);
    if (both) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (ptrdiff_t step = 0; step < steps; ++step) {
        _tile_loadd(6, first + step * TILE_BYTES, 64);
        _tile_loadd(7, second + step * TILE_BYTES, 64);
        _tile_loadd(4, matrix + step * 64, stride);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (both) {
            _tile_loadd(5, matrix + 16 * stride + step * 64, stride);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, out->sums[0], 64);
    _tile_stored(1, out->sums[1], 64);
    if (both) {
        _tile_stored(2, out->sums[2], 64);
        _tile_stored(3, out->sums[3], 64);
    }
}

INLINE void scan_with(const hr_items *items, const hr_code_batch *batch, ptrdiff_t first, ptrdiff_t last,
                      hr_best *best, int both) {
    const ptrdiff_t size = block_bytes(items), codes_bytes = size - 64, num_lines = 2 * size / 64;
    const int num_queries = batch->num_tiles * 8;
    const ptrdiff_t lines = (num_lines + num_queries - 1) / num_queries;
    tile_sums out;
    code_bar bar;
    raise_bars(&bar, items, batch, num_queries, 1, best);
    begin_tiles();
    for (ptrdiff_t block = first; block < last; block += 2) {
        const uint8_t *codes = items->blocks + block * size;
        const char *next = (const char *)codes + 6 * size, *end = next + 2 * size;
        sum_tiles(codes, codes + size, batch->code_stride / 64, batch->matrix, batch->code_stride, both, &out);
        const __m512 scales0 = _mm512_load_ps((const float *)(codes + codes_bytes));
        const __m512 scales1 = _mm512_load_ps((const float *)(codes + size + codes_bytes));
        const __m512 inverse0 = inverse_of(scales0), inverse1 = inverse_of(scales1);
        for (int q = 0; q < num_queries; ++q) {
            const int32_t *sums = out.sums[q / 16 * 2] + q % 16 * 16;
            for (ptrdiff_t line = 0; line < lines && next < end; ++line, next += 64) PREFETCH(next);
            const __m512i a = _mm512_load_si512(sums), b = _mm512_load_si512(sums + SCAN_BLOCK * SCAN_BLOCK);
            const unsigned mask0 = code_mask(&bar, q, inverse0, a), mask1 = code_mask(&bar, q, inverse1, b);
            if (__builtin_expect((mask0 | mask1) != 0, 0)) {
                const __m512i bias = _mm512_set1_epi32(batch->bias[q]);
                push_codes(&bar, batch, q, block, scales0, _mm512_add_epi32(a, bias), mask0, best);
                push_codes(&bar, batch, q, block + 1, scales1, _mm512_add_epi32(b, bias), mask1, best);
            }
        }
    }
    _tile_release();
}

void hr_scan_code_tiles_vnni(const hr_items *items, const hr_code_batch *batch, ptrdiff_t first, ptrdiff_t last,
                             hr_best *best);

static void scan_code_tiles(const hr_items *items, const hr_code_batch *batch, ptrdiff_t first, ptrdiff_t last,
                            hr_best *best) {
    if (batch->num_tiles == 1) hr_scan_code_tiles_vnni(items, batch, first, last, best);
    else if (batch->num_tiles == 2) scan_with(items, batch, first, last, best, 0);
    else scan_with(items, batch, first, last, best, 1);
}

void hr_scan_rows_avx512(const hr_items *items, const double *query, ptrdiff_t first, ptrdiff_t last, hr_best *best);
void hr_gather_rows_avx512(const hr_items *items, const double *query, const int32_t *rows, ptrdiff_t count,
                           float *scores);
void hr_scan_tiles_avx512(const hr_items *items, const float *queries, int num_queries, ptrdiff_t first,
                          ptrdiff_t last, hr_best *best);
void hr_scan_codes_vnni(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last,
                        hr_best *best);

const hr_scan hr_scan_amx = {"amx", hr_scan_rows_avx512, hr_gather_rows_avx512, hr_scan_tiles_avx512,
                             hr_scan_codes_vnni, scan_code_tiles, 2 * LANES, 1};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#include "vector_end.h"
#endif
