/* Scans of f32 rows: exact scores for one query, bounded ones for several at once.
 *
 * Each variant's file gives, before it includes this: `d8`, eight f64 sums, with d8_zero, d8_add_products(sums, eight
 * f32, eight f64) and d8_score4(four sums, out).
 */
#include "kernels.h"
#include "scan.h"

#include <math.h>

#define AHEAD_BYTES 4096      /* how far ahead of a scan memory is asked for */
#define TILE_AHEAD_BYTES 4096 /* the same for tiles, rounded up to whole groups of rows */
#define PREFETCH(address) __builtin_prefetch((const void *)(address), 0, 3)

INLINE unsigned reaching(const float *values, float threshold) {
    const vf bar = vf_set(threshold);
    unsigned mask = 0;
    for (int i = 0; i < SCAN_BLOCK; i += LANES) mask |= bits_not_less(vf_load(values + i), bar) << i;
    return mask;
}

INLINE void clamp_scores(float *scores, int count, float limit) {
    const vf high = vf_set(limit), low = vf_set(-limit);
    for (int i = 0; i < count; i += LANES)
        vf_store(scores + i, vf_max(vf_min(vf_load(scores + i), high), low));
}

/* Scores of four rows; `ahead` bytes past each of them are asked for on the way. */
INLINE void score4(const float *a, const float *b, const float *c, const float *d, const double *query,
                   ptrdiff_t stride, ptrdiff_t ahead, float *out) {
    d8 sa = d8_zero(), sb = d8_zero(), sc = d8_zero(), sd = d8_zero();
    ptrdiff_t j = 0;
#define SCORE_STEP(at)                                  \
    sa = d8_add_products(sa, a + (at), query + (at));   \
    sb = d8_add_products(sb, b + (at), query + (at));   \
    sc = d8_add_products(sc, c + (at), query + (at));   \
    sd = d8_add_products(sd, d + (at), query + (at));
#define SCORE_AHEAD(at)                              \
    if (ahead) {                                     \
        PREFETCH((const char *)(a + (at)) + ahead);  \
        PREFETCH((const char *)(b + (at)) + ahead);  \
        PREFETCH((const char *)(c + (at)) + ahead);  \
        PREFETCH((const char *)(d + (at)) + ahead);  \
    }
    for (; j + 16 <= stride; j += 16) {
        SCORE_AHEAD(j)
        SCORE_STEP(j)
        SCORE_STEP(j + 8)
    }
    if (j < stride) {
        SCORE_AHEAD(j)
        SCORE_STEP(j)
    }
    d8_score4(sa, sb, sc, sd, out);
}

static void scan_rows(const hr_items *items, const double *query, ptrdiff_t first, ptrdiff_t last, hr_best *best) {
    const ptrdiff_t stride = items->stride;
    const float limit = items->limit;
    float scores[SCAN_BLOCK];
    for (ptrdiff_t block = first; block < last; ++block) {
        const float *row = items->rows + block * SCAN_BLOCK * stride;
        for (int i = 0; i < SCAN_BLOCK; i += 4, row += 4 * stride)
            score4(row, row + stride, row + 2 * stride, row + 3 * stride, query, stride, AHEAD_BYTES, scores + i);
        clamp_scores(scores, SCAN_BLOCK, limit);
        const unsigned mask = reaching(scores, best->threshold);
        if (__builtin_expect(mask != 0, 0)) hr_best_push(best, block * SCAN_BLOCK, scores, mask);
    }
}

/* Rows at scattered places: those a few steps on are asked for while these are summed. */
static void gather_rows(const hr_items *items, const double *query, const int32_t *rows, ptrdiff_t count,
                        float *scores) {
    const ptrdiff_t stride = items->stride, bytes = stride * (ptrdiff_t)sizeof(float);
    const ptrdiff_t distance = bytes <= 1024 ? 24 : 8;
    for (ptrdiff_t i = 0; i < distance && i < count; ++i)
        for (ptrdiff_t at = 0; at < bytes; at += 64) PREFETCH((const char *)(items->rows + rows[i] * stride) + at);
    for (ptrdiff_t i = 0; i < count; i += 4) {
        const float *row[4];
        float four[SCAN_BLOCK];
        for (ptrdiff_t r = 0; r < 4; ++r) {
            row[r] = items->rows + (ptrdiff_t)rows[i + r < count ? i + r : count - 1] * stride;
            if (i + r + distance >= count) continue;
            const char *later = (const char *)(items->rows + (ptrdiff_t)rows[i + r + distance] * stride);
            for (ptrdiff_t at = 0; at < bytes; at += 64) PREFETCH(later + at);
        }
        score4(row[0], row[1], row[2], row[3], query, stride, 0, four);
        for (ptrdiff_t r = 0; r < 4 && i + r < count; ++r) {
            const float score = four[r];
            scores[i + r] = score > items->limit ? items->limit : score < -items->limit ? -items->limit : score;
        }
    }
}

/* A group of rows by two vectors of queries in registers: a row's elements are broadcast, so that rows stay as they
 * are. The sums are named because GCC keeps an array of them in memory. A sum runs along the row in order, so its
 * error is at most that of `stride` roundings. */
#define TILE_QUERIES (2 * LANES)
#if LANES == 16
#define GROUP_ROWS 8
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#else
#define GROUP_ROWS 4
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3)
#endif
#define SUM_ZERO(r) vf low##r = vf_set(0.0f), high##r = low##r;
#define SUM_LOW(r) low##r = vf_fma(vf_set(at[r * stride]), y0, low##r);
#define SUM_BOTH(r)                              \
    {                                            \
        const vf value = vf_set(at[r * stride]); \
        low##r = vf_fma(value, y0, low##r);      \
        high##r = vf_fma(value, y1, high##r);    \
    }
#define SUM_STEP(step)                                              \
    {                                                               \
        const float *at = x + (step);                               \
        const vf y0 = vf_load(query + (step) * TILE_QUERIES);       \
        const vf y1 = vf_load(query + (step) * TILE_QUERIES + LANES); \
        if (both) {                                                 \
            EACH_ROW(SUM_BOTH)                                      \
        } else {                                                    \
            EACH_ROW(SUM_LOW)                                       \
        }                                                           \
    }
#define SUM_CHECK(r) check_sums(low##r, high##r, row + r, bars, best);

/* One row's sums with the queries of a tile. */
INLINE void check_sums(vf low, vf high, ptrdiff_t row, float *bars, hr_best *best) {
    unsigned mask = bits_not_less(low, vf_load(bars)) | bits_not_less(high, vf_load(bars + LANES)) << LANES;
    if (__builtin_expect(mask != 0, 0)) {
        float values[TILE_QUERIES];
        vf_store(values, low);
        vf_store(values + LANES, high);
        for (; mask; mask &= mask - 1) {
            const int q = __builtin_ctz(mask);
            hr_best_push(best + q, row, values + q, 1);
            bars[q] = best[q].threshold;
        }
    }
}

INLINE void scan_tile(const float *x, ptrdiff_t stride, const float *query, int both, ptrdiff_t row, ptrdiff_t ahead,
                      float *bars, hr_best *best) {
    const float *const end = x + stride;
    ptrdiff_t half = 0, other = GROUP_ROWS / 2 * stride;
    EACH_ROW(SUM_ZERO)
    for (; x < end; x += SCAN_LANE, query += SCAN_LANE * TILE_QUERIES) {
        /* Sixteen steps use up a line of each row: the lines of rows to come are asked for one at a time. */
        const float *later = x + half;
        SUM_STEP(0)
        PREFETCH((const char *)later + ahead);
        SUM_STEP(1)
        SUM_STEP(2)
        PREFETCH((const char *)(later + stride) + ahead);
        SUM_STEP(3)
        SUM_STEP(4)
        if (GROUP_ROWS > 4) PREFETCH((const char *)(later + 2 * stride) + ahead);
        SUM_STEP(5)
        SUM_STEP(6)
        if (GROUP_ROWS > 4) PREFETCH((const char *)(later + 3 * stride) + ahead);
        SUM_STEP(7)
        half = other - half;
    }
    EACH_ROW(SUM_CHECK)
}

static void scan_tiles(const hr_items *items, const float *queries, int num_queries, ptrdiff_t first, ptrdiff_t last,
                       hr_best *best) {
    const ptrdiff_t stride = items->stride, group = GROUP_ROWS * stride;
    const ptrdiff_t ahead = (TILE_AHEAD_BYTES / 4 + group - 1) / group * group * (ptrdiff_t)sizeof(float);
    float bars[SCAN_QUERIES];
    for (int q = 0; q < num_queries; ++q) bars[q] = best[q].threshold;
    for (int q = num_queries; q < SCAN_QUERIES; ++q) bars[q] = INFINITY;
    for (ptrdiff_t row = first * SCAN_BLOCK; row < last * SCAN_BLOCK; row += GROUP_ROWS) {
        const float *x = items->rows + row * stride;
        for (int at = 0; at < num_queries; at += TILE_QUERIES) {
            const float *query = queries + at * stride;
            if (num_queries - at > LANES) scan_tile(x, stride, query, 1, row, ahead, bars + at, best + at);
            else scan_tile(x, stride, query, 0, row, ahead, bars + at, best + at);
        }
    }
}
