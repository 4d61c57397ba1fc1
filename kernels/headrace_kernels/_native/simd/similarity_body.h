/* Inner products of rows. One vector of partial sums a pair, taken along d in order: a pair's bits depend on its two
 * rows alone, never on its place in a tile or on its neighbours. */
#include "kernels.h"
#include "norm_body.h"

/* A block of a stays in the second-level cache while all of b passes over it, a panel of b in the first level while
 * that block passes over it. */
#define BLOCK_BYTES (512 * 1024)
#define PANEL_BYTES (24 * 1024)
#define TILE_COLUMNS 4

static ptrdiff_t normalize(const float *x, ptrdiff_t n, ptrdiff_t d, float *out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        if (!normalize_row(x + i * d, d, out + i * d)) return i;
    return -1;
}

static ptrdiff_t inverse_norms(const float *x, ptrdiff_t n, ptrdiff_t d, float *out, ptrdiff_t *extreme) {
    *extreme = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float squares = row_squares(x + i * d, d);
        if (squares_are_safe(squares)) {
            out[i] = 1.0f / sqrtf(squares);
            continue;
        }
        const double length = row_length_f64(x + i * d, d);
        if (!(length <= DBL_MAX)) return i;
        out[i] = 0.0f;
        if (length > 0.0) {
            out[i] = NAN;
            ++*extreme;
        }
    }
    return -1;
}

/* Four inner products of one row with four. */
INLINE void dot_1x4(const float *a, const float *const *b, ptrdiff_t d, float *out) {
    vf s0 = vf_set(0.0f), s1 = s0, s2 = s0, s3 = s0;
    ptrdiff_t k = 0;
    for (; k + LANES <= d; k += LANES) {
        const vf x = vf_load(a + k);
        s0 = vf_fma(x, vf_load(b[0] + k), s0);
        s1 = vf_fma(x, vf_load(b[1] + k), s1);
        s2 = vf_fma(x, vf_load(b[2] + k), s2);
        s3 = vf_fma(x, vf_load(b[3] + k), s3);
    }
    if (k < d) {
        const ptrdiff_t rest = d - k;
        const vf x = vf_load_part(a + k, rest, 0.0f);
        s0 = vf_fma(x, vf_load_part(b[0] + k, rest, 0.0f), s0);
        s1 = vf_fma(x, vf_load_part(b[1] + k, rest, 0.0f), s1);
        s2 = vf_fma(x, vf_load_part(b[2] + k, rest, 0.0f), s2);
        s3 = vf_fma(x, vf_load_part(b[3] + k, rest, 0.0f), s3);
    }
    vf_sum4(s0, s1, s2, s3, out);
}

/* TILE_ROWS x 4 inner products at once: each loaded vector serves several. The sums are named one by one because
 * GCC keeps an array of them in memory. */
#define ROW_ZERO(r) vf s##r##0 = vf_set(0.0f), s##r##1 = s##r##0, s##r##2 = s##r##0, s##r##3 = s##r##0;
#define ROW_STEP(r, LOAD)                   \
    {                                       \
        const vf x = LOAD(a + (r) * d + k); \
        s##r##0 = vf_fma(x, y0, s##r##0);   \
        s##r##1 = vf_fma(x, y1, s##r##1);   \
        s##r##2 = vf_fma(x, y2, s##r##2);   \
        s##r##3 = vf_fma(x, y3, s##r##3);   \
    }
#define ROW_SUM(r) vf_sum4(s##r##0, s##r##1, s##r##2, s##r##3, out + (r) * 4);
#if TILE_ROWS == 4
#define EACH_ROW(DO, ...) DO(0, ##__VA_ARGS__) DO(1, ##__VA_ARGS__) DO(2, ##__VA_ARGS__) DO(3, ##__VA_ARGS__)
#else
#define EACH_ROW(DO, ...) DO(0, ##__VA_ARGS__) DO(1, ##__VA_ARGS__)
#endif
#define WHOLE(p) vf_load(p)
#define PART(p) vf_load_part(p, d - k, 0.0f)
#define TILE_STEP(LOAD)                                             \
    {                                                               \
        const vf y0 = LOAD(b[0] + k), y1 = LOAD(b[1] + k);          \
        const vf y2 = LOAD(b[2] + k), y3 = LOAD(b[3] + k);          \
        EACH_ROW(ROW_STEP, LOAD)                                    \
    }

INLINE void dot_tile(const float *a, const float *const *b, ptrdiff_t d, float *out) {
    EACH_ROW(ROW_ZERO)
    ptrdiff_t k = 0;
    for (; k + LANES <= d; k += LANES) TILE_STEP(WHOLE)
    if (k < d) TILE_STEP(PART)
    EACH_ROW(ROW_SUM)
}

INLINE float cosine_of(float dot, float inverse_a, float inverse_b) {
    const float cosine = dot * inverse_a * inverse_b;
    return cosine > 1.0f ? 1.0f : cosine < -1.0f ? -1.0f : cosine;
}

/* Columns past the panel's end repeat its last row; their products are not stored. */
INLINE void dot_columns(const float *a, const float *inverse_a, ptrdiff_t num_rows, const float *b,
                        const float *inverse_b, ptrdiff_t num_columns, ptrdiff_t n, ptrdiff_t d, float *out) {
    float tile[TILE_ROWS * TILE_COLUMNS];
    const float *column[TILE_COLUMNS];
    for (ptrdiff_t c = 0; c < TILE_COLUMNS; ++c) column[c] = b + (c < num_columns ? c : num_columns - 1) * d;
    if (num_rows == TILE_ROWS)
        dot_tile(a, column, d, tile);
    else
        for (ptrdiff_t r = 0; r < num_rows; ++r) dot_1x4(a + r * d, column, d, tile + r * TILE_COLUMNS);
    for (ptrdiff_t r = 0; r < num_rows; ++r) {
        float *dot = tile + r * TILE_COLUMNS;
        if (inverse_a)
            for (ptrdiff_t c = 0; c < num_columns; ++c) dot[c] = cosine_of(dot[c], inverse_a[r], inverse_b[c]);
        if (num_columns == TILE_COLUMNS)
            memcpy(out + r * n, dot, TILE_COLUMNS * sizeof *dot);
        else
            for (ptrdiff_t c = 0; c < num_columns; ++c) out[r * n + c] = dot[c];
    }
}

/* How many rows of d floats fill `bytes`, a multiple of `step` and at least one step. */
INLINE ptrdiff_t rows_in(ptrdiff_t bytes, ptrdiff_t d, ptrdiff_t step) {
    const ptrdiff_t steps = bytes / (ptrdiff_t)sizeof(float) / (d ? d : 1) / step;
    return steps ? steps * step : step;
}

static void dot_matrix(const float *a, const float *inverse_a, ptrdiff_t m, const float *b, const float *inverse_b,
                       ptrdiff_t n, ptrdiff_t d, float *out) {
    HR_CHECK((inverse_a == NULL) == (inverse_b == NULL));
    const ptrdiff_t block = rows_in(BLOCK_BYTES, d, TILE_ROWS), panel = rows_in(PANEL_BYTES, d, TILE_COLUMNS);
    for (ptrdiff_t top = 0; top < m; top += block)
        for (ptrdiff_t left = 0; left < n; left += panel) {
            const ptrdiff_t bottom = m - top < block ? m : top + block, right = n - left < panel ? n : left + panel;
            for (ptrdiff_t i = top; i < bottom; i += TILE_ROWS)
                for (ptrdiff_t j = left; j < right; j += TILE_COLUMNS)
                    dot_columns(a + i * d, inverse_a ? inverse_a + i : NULL,
                                bottom - i < TILE_ROWS ? bottom - i : TILE_ROWS, b + j * d,
                                inverse_b ? inverse_b + j : NULL,
                                right - j < TILE_COLUMNS ? right - j : TILE_COLUMNS, n, d, out + i * n + j);
        }
}

static void dot_pairs(const float *a, const float *inverse_a, const float *b, const float *inverse_b, ptrdiff_t n,
                      ptrdiff_t d, float *out) {
    HR_CHECK((inverse_a == NULL) == (inverse_b == NULL));
    for (ptrdiff_t i = 0; i < n; i += 4) {
        /* Four pairs at once hide the multiply-add's latency without splitting a pair's sum. */
        const float *x[4], *y[4];
        float dot[4];
        for (ptrdiff_t r = 0; r < 4; ++r) {
            const ptrdiff_t row = i + r < n ? i + r : n - 1;
            x[r] = a + row * d;
            y[r] = b + row * d;
        }
        vf s0 = vf_set(0.0f), s1 = s0, s2 = s0, s3 = s0;
        ptrdiff_t k = 0;
        for (; k + LANES <= d; k += LANES) {
            s0 = vf_fma(vf_load(x[0] + k), vf_load(y[0] + k), s0);
            s1 = vf_fma(vf_load(x[1] + k), vf_load(y[1] + k), s1);
            s2 = vf_fma(vf_load(x[2] + k), vf_load(y[2] + k), s2);
            s3 = vf_fma(vf_load(x[3] + k), vf_load(y[3] + k), s3);
        }
        if (k < d) {
            const ptrdiff_t rest = d - k;
            s0 = vf_fma(vf_load_part(x[0] + k, rest, 0.0f), vf_load_part(y[0] + k, rest, 0.0f), s0);
            s1 = vf_fma(vf_load_part(x[1] + k, rest, 0.0f), vf_load_part(y[1] + k, rest, 0.0f), s1);
            s2 = vf_fma(vf_load_part(x[2] + k, rest, 0.0f), vf_load_part(y[2] + k, rest, 0.0f), s2);
            s3 = vf_fma(vf_load_part(x[3] + k, rest, 0.0f), vf_load_part(y[3] + k, rest, 0.0f), s3);
        }
        vf_sum4(s0, s1, s2, s3, dot);
        for (ptrdiff_t r = 0; r < 4 && i + r < n; ++r)
            out[i + r] = inverse_a ? cosine_of(dot[r], inverse_a[i + r], inverse_b[i + r]) : dot[r];
    }
}

const hr_similarity HR_ISA(hr_similarity) = {first_nonfinite, normalize, inverse_norms, dot_matrix, dot_pairs};
