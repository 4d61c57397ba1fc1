/* Exact top-k of many rows: what the scanning kernels of each variant share with the code that drives them.
 *
 * A score is one number, whatever finds it: eight partial sums in f64 (lane l takes elements l, l + 8, ...), added as
 * ((0+4)+(2+6)) + ((1+5)+(3+7)) and rounded once to f32. Products of two f32 are exact in f64, so a fused and an
 * unfused multiply-add agree, and so do all variants, bit for bit. Kernels that compute it directly are *exact*; the
 * others give a value whose distance from the score is bounded, and what the bound cannot rule out is scored again.
 */
#ifndef HEADRACE_SCAN_H
#define HEADRACE_SCAN_H

#include <stddef.h>
#include <stdint.h>

#define SCAN_BLOCK 16   /* rows of one block */
#define SCAN_STEP 4     /* blocks that are scanned side by side: n is padded to SCAN_BLOCK * SCAN_STEP */
#define SCAN_QUERIES 32 /* most queries of one pass */
#define SCAN_LANE 8     /* queries of one tile of codes, and f64 lanes of a score */

typedef struct {
    ptrdiff_t num_rows, num_blocks; /* blocks are padded with zero rows to a multiple of SCAN_STEP */
    ptrdiff_t dimension, stride;    /* floats of a row, padded with zeros to a multiple of SCAN_LANE */
    ptrdiff_t num_quads;            /* groups of four codes: ceil(dimension / 4) */
    float *rows;                    /* f32[16 num_blocks][stride] */
    uint8_t *blocks;                /* per block u8[num_quads][16][4] (code + 128), then 16 f32 scales; or NULL */
    ptrdiff_t rows_bytes, blocks_bytes;
    double max_norm;                /* of a row */
    double max_residual, max_code;  /* of a row: |row - scale code| / scale, and |code| */
    float limit;                    /* scores are clamped to [-limit, limit]: 1 for cosines, else infinity */
} hr_items;

static inline ptrdiff_t block_bytes(const hr_items *items) { return 64 * items->num_quads + 64; }

/* The rows that may still be among the k best of one query, as found by one thread.
 * value v of row i: v >= score - c and v - width * scale(i) <= score - c for one c of the query (scale is 1 without
 * codes). With width 0 the value is the score. */
typedef struct {
    float threshold; /* a value below it cannot be among the k best */
    int32_t count, trigger;
    ptrdiff_t k;
    uint64_t *keys;  /* (value, ~row), ordered as scores are and by row among equals */
    int32_t *floors; /* of each key: the least that the row's value less its width may be, as an ordered integer */
    int grown;      /* keys were allocated for this one alone */
    int overflow;   /* more candidates than are worth keeping: the query needs an exact scan */
    double width;
    const float *scales; /* scale of row i at scales[(i / 16) * scale_stride + i % 16]; NULL: all 1 */
    ptrdiff_t scale_stride;
    ptrdiff_t num_rows;
    const int64_t *excluded; /* ascending */
    ptrdiff_t num_excluded;
    const uint64_t *allowed; /* one bit a row, or NULL */
} hr_best;

/* Takes those of the 16 values of the block that starts at `row` whose bit is set in `mask`. */
void hr_best_push(hr_best *best, ptrdiff_t row, const float *values, unsigned mask);

/* One query as two terms of codes: query ~ scale (high + low / 254). */
typedef struct {
    int8_t *high, *low; /* s8[4 num_quads] */
    int32_t high_bias, low_bias; /* -128 sum(codes): undoes the rows' offset */
    float slack;        /* added to the inner product of codes, so that the value is an upper bound */
} hr_code_query;

/* Queries of one pass, a term each, in the orders that tiles read. */
typedef struct {
    int num_tiles;            /* of SCAN_LANE queries, the last one padded with zero queries */
    int32_t *quads;           /* s8[num_tiles][num_quads][8][4] */
    int8_t *matrix;           /* s8[32][code_stride], zero-padded to a multiple of 64 codes */
    ptrdiff_t code_stride;
    int32_t bias[SCAN_QUERIES];
    float slack[SCAN_QUERIES];
} hr_code_batch;

typedef struct {
    const char *isa;
    /* Exact scores of all rows of blocks [first, last). */
    void (*rows)(const hr_items *items, const double *query, ptrdiff_t first, ptrdiff_t last, hr_best *best);
    /* Exact scores of the rows named. */
    void (*gather)(const hr_items *items, const double *query, const int32_t *rows, ptrdiff_t count, float *scores);
    /* f32 sums for f32[ceil(num_queries / tile_queries)][stride][tile_queries], zero-padded. */
    void (*tiles)(const hr_items *items, const float *queries, int num_queries, ptrdiff_t first, ptrdiff_t last,
                  hr_best *best);
    /* Upper bounds from codes, for one query and for several. */
    void (*codes)(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last, hr_best *best);
    void (*code_tiles)(const hr_items *items, const hr_code_batch *batch, ptrdiff_t first, ptrdiff_t last,
                       hr_best *best);
    int tile_queries;
    int prefers_codes; /* whether codes are the faster way to the same answer */
} hr_scan;

typedef struct {
    const float *queries; /* f32[num_queries][dimension], finite */
    ptrdiff_t num_queries, k;
    int use_codes, num_threads;
    int normalize;                   /* queries are made unit vectors first */
    float least;                     /* least score to answer */
    const int64_t *excluded;         /* ascending within a query; NULL: none */
    const int64_t *excluded_starts;  /* i64[num_queries + 1]; NULL: the list is shared */
    ptrdiff_t num_excluded;          /* of a shared list */
    const uint64_t *allowed;         /* bitmap of num_rows bits, or NULL */
    const int32_t *chosen;           /* ascending rows to look at alone, or NULL */
    ptrdiff_t num_chosen;
    int64_t *indices;                /* i64[num_queries][k], -1 past counts */
    float *scores;                   /* f32[num_queries][k], NaN past counts */
    int64_t *counts;
    int64_t num_candidates, num_fallbacks; /* out: rows scored again, and queries scanned again exactly */
} hr_scan_request;

/* What does not differ between variants. Both answer 0, or -1 when memory is short. */
typedef struct {
    int (*pack)(const float *vectors, ptrdiff_t n, ptrdiff_t d, int normalize, int with_codes, hr_items *items);
    void (*release)(hr_items *items);
    int (*run)(const hr_scan *kernels, const hr_items *items, hr_scan_request *request);
    double (*norm)(const float *row, ptrdiff_t d);
} hr_scan_driver;

extern const hr_scan_driver hr_scanning;

/* Runs task(context, slot) for slot 0 on this thread and for others on pool threads that are free to join; returns
 * when every slot that was begun has ended. A slot may never begin: tasks share their work through the context. */
typedef void (*hr_task)(void *context, int slot);
void hr_pool_run(int num_slots, hr_task task, void *context);

#endif
