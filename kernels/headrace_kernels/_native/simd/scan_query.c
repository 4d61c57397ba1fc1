/* Bounds are proved in docs/kernels.md, under the names used here. */
#include "scan_query.h"
#include "scan_pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define F32_ROUNDING 0x1p-24
#define F32_TINY 1.2e-38   /* what flushing one denormal may cost */
#define SCORE_SLACK 1e-6   /* a score's own rounding to f32, and its clamping to [-1, 1] */
#define MOST_PRODUCT 16384.0 /* of two codes, with what a second term adds */

static size_t aligned_size(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* The next `bytes` of the workspace; a first run with memory NULL counts them. */
static void *take(char *memory, size_t *used, size_t bytes) {
    void *place = memory ? memory + *used : NULL;
    *used += aligned_size(bytes);
    return place;
}

static size_t whole_tiles(const hr_queries *queries) {
    const size_t width = (size_t)queries->tile_queries;
    return ((size_t)queries->num_queries + width - 1) / width * width;
}

static size_t lay_out(hr_queries *queries, const hr_items *items, int way, char *memory) {
    const size_t count = (size_t)queries->num_queries, stride = (size_t)items->stride;
    const size_t num_codes = 4 * (size_t)items->num_quads, padded = (size_t)queries->num_tiles * SCAN_LANE;
    size_t used = 0;
    queries->plain = take(memory, &used, count * stride * sizeof(float));
    queries->exact = take(memory, &used, count * stride * sizeof(double));
    if (way == BY_TILES) queries->tiles = take(memory, &used, whole_tiles(queries) * stride * sizeof(float));
    if (way == BY_CODES || way == BY_CODE_TILES) {
        int8_t *codes = take(memory, &used, 2 * count * num_codes);
        for (size_t q = 0; codes && q < count; ++q) {
            queries->one_by_one[q].high = codes + 2 * q * num_codes;
            queries->one_by_one[q].low = codes + (2 * q + 1) * num_codes;
        }
    }
    if (way == BY_CODE_TILES) {
        queries->batch.num_tiles = queries->num_tiles;
        queries->batch.code_stride = (ptrdiff_t)((num_codes + 63) & ~(size_t)63);
        queries->batch.quads = take(memory, &used, padded * num_codes);
        queries->batch.matrix = take(memory, &used, SCAN_QUERIES * (size_t)queries->batch.code_stride);
    }
    return used;
}

static void bound_rows(hr_queries *queries, const hr_items *items, int q) {
    const double stride = (double)items->stride, product = queries->norm[q] * items->max_norm;
    queries->row_error[q] = 1.01 * (product * (stride * F32_ROUNDING + SCORE_SLACK) +
                                    F32_TINY * (stride + sqrt(stride) * (queries->norm[q] + items->max_norm)));
}

/* What an inner product of codes may be away from the score, in units of (row scale) (query scale). */
static float code_slack(const hr_items *items, double norm, double error) {
    const double num_codes = 4.0 * (double)items->num_quads;
    const double quantized = items->max_residual * norm + items->max_code * error;
    const double scoring = SCORE_SLACK * norm * (items->max_residual + items->max_code);
    const double rounding = 6 * F32_ROUNDING * MOST_PRODUCT * num_codes + 1e-3;
    return (float)((quantized + scoring + rounding) * 1.001);
}

/* Codes of a query in one or two terms, and the slack that makes the sum of codes an upper bound. */
static void encode(hr_queries *queries, const hr_items *items, int q, int terms) {
    hr_code_query *codes = &queries->one_by_one[q];
    const float *plain = queries->plain + q * items->stride;
    double peak = 0, error = 0;
    for (ptrdiff_t j = 0; j < items->dimension; ++j) {
        const double size = fabs((double)plain[j]);
        peak = size > peak ? size : peak;
    }
    const double scale = peak > 0 ? peak / 127 : 1, inverse = 1 / scale;
    int32_t high_sum = 0, low_sum = 0;
    memset(codes->high, 0, 4 * (size_t)items->num_quads);
    memset(codes->low, 0, 4 * (size_t)items->num_quads);
    for (ptrdiff_t j = 0; j < items->dimension; ++j) {
        const double value = plain[j] * inverse;
        const int high = (int)(value + (value < 0 ? -0.5 : 0.5));
        double left = value - high;
        if (terms == 2) {
            const int low = (int)(left * 254 + (left < 0 ? -0.5 : 0.5));
            codes->low[j] = (int8_t)low;
            low_sum += low;
            left -= low / 254.0;
        }
        codes->high[j] = (int8_t)high;
        high_sum += high;
        error += left * left;
    }
    queries->code_scale[q] = scale;
    codes->high_bias = -128 * high_sum;
    codes->low_bias = -128 * low_sum;
    codes->slack = code_slack(items, queries->norm[q] * inverse, sqrt(error));
}

static void fill_tiles(hr_queries *queries, const hr_items *items) {
    const ptrdiff_t width = queries->tile_queries, stride = items->stride;
    memset(queries->tiles, 0, whole_tiles(queries) * (size_t)stride * sizeof(float));
    for (ptrdiff_t q = 0; q < queries->num_queries; ++q) {
        const float *plain = queries->plain + q * stride;
        float *tile = queries->tiles + q / width * width * stride + q % width;
        for (ptrdiff_t j = 0; j < stride; ++j) tile[j * width] = plain[j];
    }
}

static void fill_batch(hr_queries *queries, const hr_items *items) {
    hr_code_batch *batch = &queries->batch;
    const ptrdiff_t num_quads = items->num_quads;
    memset(batch->quads, 0, (size_t)(queries->num_tiles * SCAN_LANE * num_quads * 4));
    memset(batch->matrix, 0, (size_t)(SCAN_QUERIES * batch->code_stride));
    for (int q = 0; q < queries->num_queries; ++q) {
        const hr_code_query *codes = &queries->one_by_one[q];
        int32_t *tile = batch->quads + (q / SCAN_LANE) * num_quads * SCAN_LANE + q % SCAN_LANE;
        for (ptrdiff_t j = 0; j < num_quads; ++j) memcpy(tile + j * SCAN_LANE, codes->high + 4 * j, 4);
        memcpy(batch->matrix + q * batch->code_stride, codes->high, 4 * (size_t)num_quads);
        batch->bias[q] = codes->high_bias;
        batch->slack[q] = codes->slack;
    }
}

int hr_queries_make(hr_queries *queries, const hr_scan *kernels, const hr_items *items, const float *rows, int count,
                    int normalize, int way) {
    const ptrdiff_t d = items->dimension, stride = items->stride;
    memset(queries, 0, sizeof *queries);
    queries->num_queries = count;
    queries->tile_queries = kernels->tile_queries;
    queries->num_tiles = (count + SCAN_LANE - 1) / SCAN_LANE;
    if (posix_memalign(&queries->memory, 64, lay_out(queries, items, way, NULL))) {
        queries->memory = NULL;
        return -1;
    }
    lay_out(queries, items, way, queries->memory);
    for (int q = 0; q < count; ++q) {
        float *plain = queries->plain + q * stride;
        double *exact = queries->exact + q * stride;
        memset(plain, 0, (size_t)stride * sizeof *plain);
        memcpy(plain, rows + q * d, (size_t)d * sizeof *plain);
        if (normalize) hr_unit_row(plain, d, hr_row_norm(plain, d));
        for (ptrdiff_t j = 0; j < stride; ++j) exact[j] = plain[j];
        queries->norm[q] = hr_row_norm(plain, d);
        if (way == BY_TILES) bound_rows(queries, items, q);
        if (way == BY_CODES || way == BY_CODE_TILES) encode(queries, items, q, way == BY_CODES ? 2 : 1);
    }
    if (way == BY_TILES) fill_tiles(queries, items);
    if (way == BY_CODE_TILES) fill_batch(queries, items);
    return 0;
}

void hr_queries_end(hr_queries *queries) { free(queries->memory); }
