/* Rows laid out for scans: f32 rows as they are, and blocks of codes whose distance from the rows is measured. */
#include "scan_pack.h"
#include "scan_memory.h"

#include <math.h>
#include <string.h>

#define READ_PAST 4096        /* tiles and prefetches may look past the last block */
#define LEAST_SCALE 1e-30f    /* keeps bounds clear of denormals */
#define MOST_NORM 1e30        /* keeps bounds clear of infinity */
#define MOST_CODE_DIMENSION 32768 /* keeps sums of products of codes below 2^31 */

double hr_row_norm(const float *row, ptrdiff_t d) {
    double sums[8] = {0}, total = 0;
    ptrdiff_t j = 0;
    for (; j + 8 <= d; j += 8)
        for (int l = 0; l < 8; ++l) sums[l] += (double)row[j + l] * row[j + l];
    for (int l = 0; j < d; ++j, ++l) sums[l] += (double)row[j] * row[j];
    for (int l = 0; l < 8; ++l) total += sums[l];
    return sqrt(total);
}

void hr_unit_row(float *row, ptrdiff_t d, double norm) {
    const double inverse = norm > 0 ? 1 / norm : 0;
    for (ptrdiff_t j = 0; j < d; ++j) row[j] = (float)(row[j] * inverse);
}

/* Nearest whole numbers of row / scale as bytes + 128 at every fourth place of a block. */
static void pack_codes(hr_items *items, ptrdiff_t index, const float *row) {
    const ptrdiff_t d = items->dimension;
    uint8_t *block = items->blocks + index / SCAN_BLOCK * block_bytes(items);
    uint8_t *codes = block + index % SCAN_BLOCK * 4;
    float *scales = (float *)(block + 64 * items->num_quads), peak = 0;
    for (ptrdiff_t j = 0; j < d; ++j) peak = fabsf(row[j]) > peak ? fabsf(row[j]) : peak;
    const float scale = peak / 127 > LEAST_SCALE ? peak / 127 : LEAST_SCALE;
    const double inverse = 1.0 / scale;
    double residual = 0, squares = 0;
    for (ptrdiff_t j = 0; j < 4 * items->num_quads; ++j) {
        const double exact = j < d ? row[j] * inverse : 0.0;
        int code = (int)(exact + (exact < 0 ? -0.5 : 0.5));
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        codes[j / 4 * 64 + j % 4] = (uint8_t)(code + 128);
        residual += (exact - code) * (exact - code);
        squares += (double)(code * code);
    }
    scales[index % SCAN_BLOCK] = scale;
    if (sqrt(residual) > items->max_residual) items->max_residual = sqrt(residual);
    if (sqrt(squares) > items->max_code) items->max_code = sqrt(squares);
}

static int allocate(hr_items *items, int with_codes) {
    const ptrdiff_t padded = items->num_blocks * SCAN_BLOCK;
    items->rows_bytes = padded * items->stride * (ptrdiff_t)sizeof(float);
    items->rows = hr_pages_new((size_t)items->rows_bytes);
    if (!items->rows) return -1;
    if (!with_codes) return 0;
    items->blocks_bytes = items->num_blocks * block_bytes(items) + READ_PAST;
    items->blocks = hr_pages_new((size_t)items->blocks_bytes);
    return items->blocks ? 0 : -1;
}

void hr_release(hr_items *items) {
    hr_pages_free(items->rows, (size_t)items->rows_bytes);
    hr_pages_free(items->blocks, (size_t)items->blocks_bytes);
    items->rows = NULL;
    items->blocks = NULL;
    items->rows_bytes = items->blocks_bytes = 0;
}

int hr_pack(const float *vectors, ptrdiff_t n, ptrdiff_t d, int normalize, int with_codes, hr_items *items) {
    const ptrdiff_t step = SCAN_BLOCK * SCAN_STEP;
    memset(items, 0, sizeof *items);
    items->num_rows = n;
    items->num_blocks = (n + step - 1) / step * SCAN_STEP;
    items->dimension = d;
    items->stride = (d + SCAN_LANE - 1) / SCAN_LANE * SCAN_LANE;
    items->num_quads = (d + 3) / 4;
    items->limit = normalize ? 1.0f : INFINITY;
    if (allocate(items, with_codes && d <= MOST_CODE_DIMENSION)) {
        hr_release(items);
        return -1;
    }
    for (ptrdiff_t i = 0; i < n; ++i) {
        float *row = items->rows + i * items->stride;
        memcpy(row, vectors + i * d, (size_t)d * sizeof *row);
        double norm = hr_row_norm(row, d);
        if (normalize) {
            hr_unit_row(row, d, norm);
            norm = hr_row_norm(row, d);
        }
        if (norm > items->max_norm) items->max_norm = norm;
        if (items->blocks) pack_codes(items, i, row);
    }
    if (items->blocks && items->max_norm > MOST_NORM) {
        hr_pages_free(items->blocks, (size_t)items->blocks_bytes);
        items->blocks = NULL;
        items->blocks_bytes = 0;
    }
    return 0;
}
