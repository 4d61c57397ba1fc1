/* Tokens' vectors to one vector. Padding is skipped, never multiplied by zero: whatever stands there cannot reach
 * the answer, and the sum's order depends on the kept tokens alone, so padding further changes no bit. */
#include "kernels.h"
#include "norm_body.h"

/* sum += the tokens, four streams at a time: one pass over the answer serves four rows. */
INLINE void add_four(float *sum, const float *const *token, ptrdiff_t d) {
    ptrdiff_t k = 0;
    for (; k + LANES <= d; k += LANES) {
        const vf low = vf_add(vf_load(token[0] + k), vf_load(token[1] + k));
        const vf high = vf_add(vf_load(token[2] + k), vf_load(token[3] + k));
        vf_store(sum + k, vf_add(vf_load(sum + k), vf_add(low, high)));
    }
    for (; k < d; ++k) sum[k] += (token[0][k] + token[1][k]) + (token[2][k] + token[3][k]);
}

INLINE void add_one(float *sum, const float *token, ptrdiff_t d) {
    ptrdiff_t k = 0;
    for (; k + LANES <= d; k += LANES) vf_store(sum + k, vf_add(vf_load(sum + k), vf_load(token + k)));
    for (; k < d; ++k) sum[k] += token[k];
}

INLINE void set_zero(float *row, ptrdiff_t d) {
    if (d) memset(row, 0, (size_t)d * sizeof *row);
}

static ptrdiff_t mean_pool(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                           int normalize, float *out) {
    HR_CHECK(b >= 0 && s >= 0 && d >= 0);
    for (ptrdiff_t i = 0; i < b; ++i) {
        const float *token[4];
        float *sum = out + i * d;
        ptrdiff_t num_waiting = 0, num_kept = 0;
        set_zero(sum, d);
        for (ptrdiff_t t = 0; t < s; ++t) {
            if (!mask[i * s + t]) continue;
            ++num_kept;
            token[num_waiting++] = hidden + (i * s + t) * d;
            if (num_waiting == 4) {
                add_four(sum, token, d);
                num_waiting = 0;
            }
        }
        for (ptrdiff_t w = 0; w < num_waiting; ++w) add_one(sum, token[w], d);
        if (num_kept) {
            const float count = (float)num_kept;
            const vf divisor = vf_set(count);
            ptrdiff_t k = 0;
            for (; k + LANES <= d; k += LANES) vf_store(sum + k, vf_div(vf_load(sum + k), divisor));
            for (; k < d; ++k) sum[k] /= count;
        }
        /* NaN and infinities survive every addition and the division: the answer tells on the input. */
        if (normalize ? !normalize_row(sum, d, sum) : first_nonfinite(sum, 1, d) == 0) return i;
    }
    return -1;
}

static ptrdiff_t max_pool(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                          float *out) {
    HR_CHECK(b >= 0 && s >= 0 && d >= 0);
    for (ptrdiff_t i = 0; i < b; ++i) {
        float *best = out + i * d;
        int seen = 0;
        set_zero(best, d);
        for (ptrdiff_t t = 0; t < s; ++t) {
            if (!mask[i * s + t]) continue;
            const float *token = hidden + (i * s + t) * d;
            if (first_nonfinite(token, 1, d) == 0) return i;
            if (!seen) {
                if (d) memcpy(best, token, (size_t)d * sizeof *best);
                seen = 1;
                continue;
            }
            ptrdiff_t k = 0;
            for (; k + LANES <= d; k += LANES) vf_store(best + k, vf_max(vf_load(token + k), vf_load(best + k)));
            for (; k < d; ++k) best[k] = token[k] > best[k] ? token[k] : best[k];
        }
    }
    return -1;
}

static ptrdiff_t token_pool(const float *hidden, const uint8_t *mask, ptrdiff_t b, ptrdiff_t s, ptrdiff_t d,
                            int last, float *out) {
    HR_CHECK(b >= 0 && s >= 0 && d >= 0);
    for (ptrdiff_t i = 0; i < b; ++i) {
        ptrdiff_t t = last ? s - 1 : 0;
        const ptrdiff_t step = last ? -1 : 1;
        while (t >= 0 && t < s && !mask[i * s + t]) t += step;
        set_zero(out + i * d, d);
        if (t < 0 || t >= s) continue;
        const float *token = hidden + (i * s + t) * d;
        if (first_nonfinite(token, 1, d) == 0) return i;
        if (d) memcpy(out + i * d, token, (size_t)d * sizeof *out);
    }
    return -1;
}

const hr_pooling HR_ISA(hr_pooling) = {mean_pool, max_pool, token_pool};
