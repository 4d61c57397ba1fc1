/* What both variants share: quantization, and what becomes of a block's sums. Include after rows.h and the vectors. */
#include "exp_body.h"

#include <float.h>
#include <math.h>

/* A row whose largest number is smaller counts as zeros: its scale's inverse would leave f32's range. */
#define SMALLEST_PEAK 1e-30f

static void quantize(const float *x, ptrdiff_t count, ptrdiff_t width, int8_t *codes, ptrdiff_t stride,
                     float *scales) {
    for (ptrdiff_t i = 0; i < count; ++i, x += width, codes += stride) {
        vf peaks = vf_set(0.0f);
        unsigned bad = 0;
        for (ptrdiff_t k = 0; k < width; k += LANES) {
            const vf v = vf_abs(vf_load(x + k));
            bad |= bits_not_less_equal(v, vf_set(FLT_MAX));
            peaks = vf_max(v, peaks);
        }
        const float peak = vf_largest(peaks);
        const int zero = bad || peak < SMALLEST_PEAK;
        scales[i] = bad ? NAN : zero ? 0.0f : peak / 127.0f;
        const vf inverse = vf_set(zero ? 0.0f : 127.0f / peak); /* |x| * inverse rounds to 127 at most */
        if (zero) {
            memset(codes, 0, (size_t)stride);
            continue;
        }
        for (ptrdiff_t k = 0; k < width; k += LANES)
            vf_store_int8(codes + k, LANES, vf_mul(vf_load(x + k), inverse));
        if (width < stride) memset(codes + width, 0, (size_t)(stride - width));
    }
}

/* The conversion to whole numbers rounds halves to even, as quantization wants it. */
INLINE vf scaled(__m512i sums, const float *scales, float row_scale) {
    return vf_mul(vf_mul(_mm512_cvtepi32_ps(sums), vf_load(scales)), vf_set(row_scale));
}

INLINE vf silu(vf x) {
    const vf one = vf_set(1.0f), e = vf_exp_nonpositive(vf_sub(vf_set(0.0f), vf_abs(x)));
    return vf_div(vf_mul(x, vf_positive_or(x, one, e)), vf_add(one, e));
}

INLINE void put(int gated, __m512i first, __m512i second, const float *scales, float row_scale, float *out) {
    const vf a = scaled(first, scales, row_scale), b = scaled(second, scales + ROWS_BLOCK, row_scale);
    if (gated) {
        vf_store(out, vf_mul(silu(a), b));
    } else {
        vf_store(out, a);
        vf_store(out + ROWS_BLOCK, b);
    }
}
