#include "kernels.h"

#include <float.h>
#include <math.h>

/* Under this, 127 / max|x| leaves f32's range or the scale its normal numbers: such a row is taken in f64. */
#define SMALLEST_PEAK 1e-30f

/* Whole rounding in f64, the scale rounded up so that no code passes 127. */
static void int8_tiny_row(const float *row, ptrdiff_t d, float peak, int8_t *codes, float *scale) {
    float step = (float)((double)peak / 127.0);
    if ((double)step * 127.0 < (double)peak) step = nextafterf(step, 1.0f);
    *scale = step;
    for (ptrdiff_t k = 0; k < d; ++k) codes[k] = step > 0.0f ? (int8_t)rint((double)row[k] / (double)step) : 0;
}

static ptrdiff_t int8(const float *x, ptrdiff_t n, ptrdiff_t d, int8_t *codes, float *scale) {
    HR_CHECK(n >= 0 && d >= 0);
    const vf largest = vf_set(FLT_MAX);
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float *row = x + i * d;
        int8_t *code = codes + i * d;
        vf peaks = vf_set(0.0f);
        unsigned bad = 0;
        ptrdiff_t k = 0;
        for (; k + LANES <= d; k += LANES) {
            const vf v = vf_abs(vf_load(row + k));
            bad |= bits_not_less_equal(v, largest);
            peaks = vf_max(v, peaks);
        }
        if (k < d) {
            const vf v = vf_abs(vf_load_part(row + k, d - k, 0.0f));
            bad |= bits_not_less_equal(v, largest);
            peaks = vf_max(v, peaks);
        }
        if (bad) return i;
        const float peak = vf_largest(peaks);
        if (peak < SMALLEST_PEAK) {
            int8_tiny_row(row, d, peak, code, scale + i);
            continue;
        }
        scale[i] = peak / 127.0f;
        const vf inverse = vf_set(127.0f / peak); /* |x| * inverse <= 127 (1 + 2^-23), which rounds to 127 */
        for (k = 0; k + LANES <= d; k += LANES)
            vf_store_int8(code + k, LANES, vf_round(vf_mul(vf_load(row + k), inverse)));
        if (k < d) vf_store_int8(code + k, d - k, vf_round(vf_mul(vf_load_part(row + k, d - k, 0.0f), inverse)));
    }
    return -1;
}

const hr_quantization HR_ISA(hr_quantization) = {int8};
