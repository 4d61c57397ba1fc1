/* Lengths of rows, and rows made unit length. */
#ifndef HR_NORM_BODY_H
#define HR_NORM_BODY_H

#include <float.h>
#include <math.h>

/* Between these, a sum of squares in f32 neither overflowed nor lost to underflow more than d * 2^-126, which is
 * nothing beside 1e-20; outside them the row is taken again in f64, whose range holds every f32 square. */
#define SQUARES_LOW 1e-20f
#define SQUARES_HIGH 1e37f

INLINE float row_squares(const float *row, ptrdiff_t d) {
    vf s0 = vf_set(0.0f), s1 = s0, s2 = s0, s3 = s0;
    ptrdiff_t k = 0;
    for (; k + 4 * LANES <= d; k += 4 * LANES) {
        const vf x0 = vf_load(row + k), x1 = vf_load(row + k + LANES);
        const vf x2 = vf_load(row + k + 2 * LANES), x3 = vf_load(row + k + 3 * LANES);
        s0 = vf_fma(x0, x0, s0);
        s1 = vf_fma(x1, x1, s1);
        s2 = vf_fma(x2, x2, s2);
        s3 = vf_fma(x3, x3, s3);
    }
    for (; k + LANES <= d; k += LANES) {
        const vf x = vf_load(row + k);
        s0 = vf_fma(x, x, s0);
    }
    if (k < d) {
        const vf x = vf_load_part(row + k, d - k, 0.0f);
        s1 = vf_fma(x, x, s1);
    }
    return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

INLINE int squares_are_safe(float squares) { return squares >= SQUARES_LOW && squares <= SQUARES_HIGH; }

/* NaN or infinite exactly if an element is. */
static double row_length_f64(const float *row, ptrdiff_t d) {
    double squares = 0.0;
    for (ptrdiff_t k = 0; k < d; ++k) squares += (double)row[k] * (double)row[k];
    return sqrt(squares);
}

/* out = row / |row|, zero stays zero; out may be row. 0 if the row is not finite. */
INLINE int normalize_row(const float *row, ptrdiff_t d, float *out) {
    const float squares = row_squares(row, d);
    if (squares_are_safe(squares)) {
        const vf length = vf_set(sqrtf(squares));
        ptrdiff_t k = 0;
        for (; k + LANES <= d; k += LANES) vf_store(out + k, vf_div(vf_load(row + k), length));
        if (k < d) vf_store_part(out + k, d - k, vf_div(vf_load_part(row + k, d - k, 0.0f), length));
        return 1;
    }
    const double length = row_length_f64(row, d);
    if (!(length <= DBL_MAX)) return 0;
    for (ptrdiff_t k = 0; k < d; ++k) out[k] = length > 0.0 ? (float)((double)row[k] / length) : 0.0f;
    return 1;
}

/* The first row with NaN or an infinity, or -1. */
static ptrdiff_t first_nonfinite(const float *x, ptrdiff_t n, ptrdiff_t d) {
    const vf largest = vf_set(FLT_MAX);
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float *row = x + i * d;
        unsigned bad = 0;
        ptrdiff_t k = 0;
        for (; k + LANES <= d; k += LANES) bad |= bits_not_less_equal(vf_abs(vf_load(row + k)), largest);
        if (k < d) bad |= bits_not_less_equal(vf_abs(vf_load_part(row + k, d - k, 0.0f)), largest);
        if (bad) return i;
    }
    return -1;
}

#endif
