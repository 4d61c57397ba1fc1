#include "kernels.h"
#include "softmax_body.h"

static ptrdiff_t softmax(const float *logits, ptrdiff_t n, ptrdiff_t c, float *out) {
    HR_CHECK(n >= 0 && c >= 0);
    if (c == 0) return -1;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float *row = logits + i * c;
        float *answer = out + i * c;
        const float peak = softmax_peak(row, c);
        if (peak != peak) return i;
        const vf sum = vf_set(softmax_sum(row, c, peak, answer));
        ptrdiff_t j = 0;
        for (; j + LANES <= c; j += LANES) vf_store(answer + j, vf_div(vf_load(answer + j), sum));
        if (j < c) vf_store_part(answer + j, c - j, vf_div(vf_load_part(answer + j, c - j, 0.0f), sum));
    }
    return -1;
}

/* e / (1 + e) on the negative side, with e = exp(x): no cancellation, so tiny answers keep their digits. */
INLINE vf sigmoid_of(vf x) {
    const vf one = vf_set(1.0f);
    const vf e = vf_exp_nonpositive(vf_sub(vf_set(0.0f), vf_abs(x)));
    return vf_div(vf_positive_or(x, one, e), vf_add(one, e));
}

static ptrdiff_t sigmoid(const float *x, ptrdiff_t count, float *out) {
    HR_CHECK(count >= 0);
    for (ptrdiff_t j = 0; j < count; j += LANES) {
        const ptrdiff_t width = count - j < LANES ? count - j : LANES;
        const vf v = width == LANES ? vf_load(x + j) : vf_load_part(x + j, width, 0.0f);
        const unsigned unordered = bits_not_less_equal(v, v);
        if (unordered) return j + __builtin_ctz(unordered);
        if (width == LANES)
            vf_store(out + j, sigmoid_of(v));
        else
            vf_store_part(out + j, width, sigmoid_of(v));
    }
    return -1;
}

const hr_activation HR_ISA(hr_activation) = {softmax, sigmoid};
