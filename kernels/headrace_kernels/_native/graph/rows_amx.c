/* Sums by tiles: 16 rows by 16 outputs by 64 codes in one instruction. One to sixteen rows take four blocks of weights
 * at a time, so that a tile of codes is read once for four of weights; more rows take two blocks by two tiles. */
#include "rows.h"

#if HR_X86
#if !defined(__clang__)
#pragma GCC target("amx-tile,amx-int8")
#endif
#include "vector_avx512.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8"))), apply_to = function)
#endif

#include "rows_avx512.h"

#define TILE 1024
#define DEPTH 64

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t num_rows[16];
} tile_shapes;

/* Tiles 0 to 3 hold sums, 4 and 5 codes, 6 and 7 weights; `four`: 4 codes, 5 to 7 weights. */
static void begin_tiles(int rows, int four) {
    tile_shapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        shapes.row_bytes[tile] = 64;
        shapes.num_rows[tile] = (uint8_t)(tile < (four ? 5 : 6) ? rows : 16);
    }
    _tile_loadconfig(&shapes);
}

typedef struct {
    _Alignas(64) int32_t sums[4][ROWS_BLOCK * ROWS_BLOCK];
    _Alignas(64) int8_t ends[4][TILE]; /* the last codes of each block where the width is no multiple of 64 */
} scratch;

/* The weights of a step: past the block's end they are zero, not the next block's (or nobody's) bytes. */
INLINE const int8_t *step_of(const int8_t *block, ptrdiff_t k, ptrdiff_t width, int8_t *end) {
    if (k + DEPTH <= width) return block + k * ROWS_BLOCK;
    const size_t left = (size_t)((width - k) * ROWS_BLOCK);
    memcpy(end, block + k * ROWS_BLOCK, left);
    memset(end + left, 0, TILE - left);
    return end;
}

/* Up to 16 rows by `blocks` (1, 2 or 4) blocks. */
INLINE void sum_few(const hr_rows *rows, const int8_t *weights, int blocks, scratch *at) {
    const ptrdiff_t size = rows->width * ROWS_BLOCK, stride = rows->stride;
    _tile_zero(0);
    if (blocks > 1) _tile_zero(1);
    if (blocks > 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (ptrdiff_t k = 0; k < rows->width; k += DEPTH) {
        _tile_loadd(4, rows->codes + k, stride);
        _tile_loadd(5, step_of(weights, k, rows->width, at->ends[0]), 64);
        _tile_dpbssd(0, 4, 5);
        if (blocks > 1) {
            _tile_loadd(6, step_of(weights + size, k, rows->width, at->ends[1]), 64);
            _tile_dpbssd(1, 4, 6);
        }
        if (blocks > 2) {
            _tile_loadd(7, step_of(weights + 2 * size, k, rows->width, at->ends[2]), 64);
            _tile_dpbssd(2, 4, 7);
            _tile_loadd(5, step_of(weights + 3 * size, k, rows->width, at->ends[3]), 64);
            _tile_dpbssd(3, 4, 5);
        }
    }
    _tile_stored(0, at->sums[0], 64);
    if (blocks > 1) _tile_stored(1, at->sums[1], 64);
    if (blocks > 2) {
        _tile_stored(2, at->sums[2], 64);
        _tile_stored(3, at->sums[3], 64);
    }
}

/* 16 or 32 rows from `row` on, by two blocks; sums 0 and 1 are of the first block. */
INLINE void sum_many(const hr_rows *rows, ptrdiff_t row, int both, const int8_t *weights, scratch *at) {
    const ptrdiff_t size = rows->width * ROWS_BLOCK, stride = rows->stride;
    const int8_t *codes = rows->codes + row * stride;
    _tile_zero(0);
    _tile_zero(2);
    if (both) {
        _tile_zero(1);
        _tile_zero(3);
    }
    for (ptrdiff_t k = 0; k < rows->width; k += DEPTH) {
        _tile_loadd(6, step_of(weights, k, rows->width, at->ends[0]), 64);
        _tile_loadd(7, step_of(weights + size, k, rows->width, at->ends[1]), 64);
        _tile_loadd(4, codes + k, stride);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(2, 4, 7);
        if (both) {
            _tile_loadd(5, codes + 16 * stride + k, stride);
            _tile_dpbssd(1, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, at->sums[0], 64);
    _tile_stored(2, at->sums[2], 64);
    if (both) {
        _tile_stored(1, at->sums[1], 64);
        _tile_stored(3, at->sums[3], 64);
    }
}

INLINE __m512i sums_of(const int32_t *tile, ptrdiff_t row) { return _mm512_load_si512(tile + row * ROWS_BLOCK); }

/* Two blocks' sums of rows `row` ... `row` + count - 1, in tiles `a` and `b`. */
INLINE void put_rows(const hr_rows *rows, ptrdiff_t row, ptrdiff_t count, int gated, const int32_t *a,
                     const int32_t *b, const float *scales, float *out, ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < count; ++i)
        put(gated, sums_of(a, i), sums_of(b, i), scales, rows->scales[row + i], out + (row + i) * out_stride);
}

static void few_rows(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                     int gated, float *out, ptrdiff_t out_stride) {
    const ptrdiff_t size = rows->width * ROWS_BLOCK, column = gated ? ROWS_BLOCK / 2 : ROWS_BLOCK;
    scratch at;
    begin_tiles((int)rows->count, 1);
    ptrdiff_t block = first;
    for (; block + 4 <= last; block += 4) {
        const float *scale = scales + block * ROWS_BLOCK;
        float *to = out + block * column;
        sum_few(rows, weights + block * size, 4, &at);
        put_rows(rows, 0, rows->count, gated, at.sums[0], at.sums[1], scale, to, out_stride);
        put_rows(rows, 0, rows->count, gated, at.sums[2], at.sums[3], scale + 2 * ROWS_BLOCK, to + 2 * column,
                 out_stride);
    }
    for (; block + 2 <= last; block += 2) {
        sum_few(rows, weights + block * size, 2, &at);
        put_rows(rows, 0, rows->count, gated, at.sums[0], at.sums[1], scales + block * ROWS_BLOCK,
                 out + block * column, out_stride);
    }
    if (block < last) {
        sum_few(rows, weights + block * size, 1, &at);
        for (ptrdiff_t i = 0; i < rows->count; ++i)
            vf_store(out + i * out_stride + block * ROWS_BLOCK,
                     scaled(sums_of(at.sums[0], i), scales + block * ROWS_BLOCK, rows->scales[i]));
    }
    _tile_release();
}

/* A last block without a neighbour is left over: the caller takes it with few rows at a time. */
static ptrdiff_t many_rows(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first,
                           ptrdiff_t last, int gated, float *out, ptrdiff_t out_stride) {
    const ptrdiff_t size = rows->width * ROWS_BLOCK, column = gated ? ROWS_BLOCK / 2 : ROWS_BLOCK;
    scratch at;
    begin_tiles(16, 0);
    ptrdiff_t block = first;
    for (; block + 2 <= last; block += 2) {
        const float *scale = scales + block * ROWS_BLOCK;
        float *to = out + block * column;
        for (ptrdiff_t row = 0; row < rows->count; row += 32) {
            const ptrdiff_t left = rows->count - row;
            sum_many(rows, row, left > 16, weights + block * size, &at);
            put_rows(rows, row, left < 16 ? left : 16, gated, at.sums[0], at.sums[2], scale, to, out_stride);
            if (left > 16)
                put_rows(rows, row + 16, left < 32 ? left - 16 : 16, gated, at.sums[1], at.sums[3], scale, to,
                         out_stride);
        }
    }
    _tile_release();
    return block;
}

static void any_rows(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                     int gated, float *out, ptrdiff_t out_stride) {
    if (rows->count <= 16) {
        few_rows(rows, weights, scales, first, last, gated, out, out_stride);
        return;
    }
    const ptrdiff_t left = many_rows(rows, weights, scales, first, last, gated, out, out_stride);
    for (ptrdiff_t row = 0; left < last && row < rows->count; row += 16) {
        const ptrdiff_t count = rows->count - row < 16 ? rows->count - row : 16;
        const hr_rows part = {rows->codes + row * rows->stride, rows->scales + row, count, rows->width, rows->stride};
        few_rows(&part, weights, scales, left, last, gated, out + row * out_stride, out_stride);
    }
}

static void linear(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                   float *out, ptrdiff_t out_stride) {
    any_rows(rows, weights, scales, first, last, 0, out, out_stride);
}

static void gated(const hr_rows *rows, const int8_t *weights, const float *scales, ptrdiff_t first, ptrdiff_t last,
                  float *out, ptrdiff_t out_stride) {
    any_rows(rows, weights, scales, 2 * first, 2 * last, 1, out, out_stride);
}

const hr_row_kernels hr_rows_amx = {"amx", quantize, linear, gated, hr_attend_avx512};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#include "vector_end.h"
#endif
