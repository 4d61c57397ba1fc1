/* Scans of f32 rows: exact scores for one query, bounded ones for several at once.
 *
 * Each variant's file gives, before it includes this: `d8`, eight f64 sums, with d8_zero, d8_add_products(sums, eight
 * f32, eight f64) and d8_score4(four sums, out); and `fill_panel(rows, stride, panel)`, which turns PANEL_ROWS rows
 * into panel[stride][PANEL_ROWS].
 */
#include "kernels.h"
#include "scan.h"

#define PANEL_ROWS (2 * LANES)
#define AHEAD_BYTES 4096 /* how far ahead of a scan memory is asked for */
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

/* PANEL_ROWS rows by TILE_WIDTH queries in registers; the sums are named because GCC keeps an array of them in
 * memory. A sum runs along the row in order, so its error is at most that of `stride` roundings. */
#if LANES == 16
#define TILE_WIDTH 8
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#else
#define TILE_WIDTH 4
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3)
#endif
#define SUM_ZERO(q) vf low##q = vf_set(0.0f), high##q = low##q;
#define SUM_STEP(q)                               \
    {                                             \
        const vf y = vf_set(query[q]);            \
        low##q = vf_fma(x0, y, low##q);           \
        high##q = vf_fma(x1, y, high##q);         \
    }
#define SUM_CHECK(q) check_panel(low##q, high##q, row, best + q);

INLINE void check_panel(vf low, vf high, ptrdiff_t row, hr_best *best) {
    const vf bar = vf_set(best->threshold);
    const unsigned mask = bits_not_less(low, bar) | bits_not_less(high, bar) << LANES;
    if (__builtin_expect(mask != 0, 0)) {
        float values[PANEL_ROWS];
        vf_store(values, low);
        vf_store(values + LANES, high);
        for (int i = 0; i < PANEL_ROWS; i += SCAN_BLOCK) {
            const unsigned part = mask >> i & 0xffff;
            if (part) hr_best_push(best, row + i, values + i, part);
        }
    }
}

static void scan_tiles(const hr_items *items, const float *queries, int num_tiles, ptrdiff_t first, ptrdiff_t last,
                       hr_best *best, float *panel) {
    const ptrdiff_t stride = items->stride, panel_bytes = PANEL_ROWS * stride * (ptrdiff_t)sizeof(float);
    const int parts = num_tiles * (SCAN_LANE / TILE_WIDTH);
    /* The next panel's lines are asked for evenly, every other step of every tile. */
    const ptrdiff_t lines = (panel_bytes / 64 + parts * (stride / 2) - 1) / (parts * (stride / 2));
    for (ptrdiff_t row = first * SCAN_BLOCK; row < last * SCAN_BLOCK; row += PANEL_ROWS) {
        const char *next = (const char *)(items->rows + row * stride) + panel_bytes;
        const char *end = next + panel_bytes;
        fill_panel(items->rows + row * stride, stride, panel);
        for (int part = 0; part < parts; ++part) {
            hr_best *const bests = best;
            const float *query = queries + (part * TILE_WIDTH / SCAN_LANE) * stride * SCAN_LANE +
                                 part * TILE_WIDTH % SCAN_LANE;
            const float *x = panel;
            EACH_QUERY(SUM_ZERO)
            for (ptrdiff_t j = 0; j < stride; j += 2) {
                for (ptrdiff_t line = 0; line < lines && next < end; ++line, next += 64) PREFETCH(next);
                for (int half = 0; half < 2; ++half, x += PANEL_ROWS, query += SCAN_LANE) {
                    const vf x0 = vf_load(x), x1 = vf_load(x + LANES);
                    EACH_QUERY(SUM_STEP)
                }
            }
            {
                hr_best *const best = bests + part * TILE_WIDTH;
                EACH_QUERY(SUM_CHECK)
            }
        }
    }
}
