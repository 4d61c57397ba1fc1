/* What a sampler does to whole rows, in the order of operations that sampling.h promises. */
#include "kernels.h"

#include <math.h>

/* The exponential without fused operations: its bits are then the same on every variant. */
INLINE vf vf_unfused(vf a, vf b, vf c) { return vf_add(vf_mul(a, b), c); }
#define vf_fma vf_unfused
#include "exp_body.h"
#undef vf_fma

/* Up to LANES values at row + at, `fill` past the row's end. */
INLINE vf load_at(const float *row, ptrdiff_t v, ptrdiff_t at, float fill) {
    if (v - at >= LANES) return vf_load(row + at);
    return v > at ? vf_load_part(row + at, v - at, fill) : vf_set(fill);
}

static float tops_of(const float *row, ptrdiff_t v, float *tops) {
    const vf infinite = vf_set(INFINITY);
    vf peak = vf_set(-INFINITY);
    unsigned bad = 0;
    for (ptrdiff_t start = 0; start < v; start += SAMPLING_GROUP, tops += SAMPLING_LANES) {
        for (ptrdiff_t part = 0; part < SAMPLING_LANES; part += LANES) {
            vf top = vf_set(-INFINITY);
            const float *lane = row + start + part;
            if (v - start >= SAMPLING_GROUP) {
                for (ptrdiff_t step = 0; step < SAMPLING_GROUP; step += SAMPLING_LANES) {
                    const vf x = vf_load(lane + step);
                    bad |= bits_not_less(x, infinite);
                    top = vf_max(x, top);
                }
            } else {
                for (ptrdiff_t at = start + part; at < v; at += SAMPLING_LANES) {
                    const vf x = load_at(row, v, at, -INFINITY);
                    bad |= bits_not_less(x, infinite);
                    top = vf_max(x, top);
                }
            }
            vf_store(tops + part, top);
            peak = vf_max(top, peak);
        }
    }
    return bad ? NAN : vf_largest(peak);
}

INLINE vf weight_of(vf x, vf peak, vf inverse) { return vf_exp_nonpositive(vf_mul(vf_sub(x, peak), inverse)); }

static void sums_of(const float *row, ptrdiff_t v, float peak, float inverse, float *sums) {
    const vf center = vf_set(peak), scale = vf_set(inverse);
    for (ptrdiff_t start = 0; start < v; start += SAMPLING_GROUP) {
        float lane[SAMPLING_LANES];
        for (ptrdiff_t part = 0; part < SAMPLING_LANES; part += LANES) {
            vf sum = vf_set(0.0f);
            if (v - start >= SAMPLING_GROUP) {
                const float *x = row + start + part;
                for (ptrdiff_t step = 0; step < SAMPLING_GROUP; step += SAMPLING_LANES)
                    sum = vf_add(sum, weight_of(vf_load(x + step), center, scale));
            } else { /* the absent lanes are -inf, whose weight is exactly 0 */
                for (ptrdiff_t at = start + part; at < v; at += SAMPLING_LANES)
                    sum = vf_add(sum, weight_of(load_at(row, v, at, -INFINITY), center, scale));
            }
            vf_store(lane + part, sum);
        }
        for (int width = SAMPLING_LANES / 2; width; width /= 2)
            for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
        *sums++ = lane[0];
    }
}

static void weights_of(float *x, ptrdiff_t n, float peak, float inverse) {
    const vf center = vf_set(peak), scale = vf_set(inverse);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) vf_store(x + i, weight_of(vf_load(x + i), center, scale));
    if (i < n) vf_store_part(x + i, n - i, weight_of(vf_load_part(x + i, n - i, -INFINITY), center, scale));
}

static ptrdiff_t collect(const float *row, ptrdiff_t v, const float *tops, float bar, int32_t *indices) {
    const vf least = vf_set(bar);
    ptrdiff_t count = 0;
    for (ptrdiff_t start = 0; start < v; start += SAMPLING_GROUP, tops += SAMPLING_LANES) {
        unsigned any = 0;
        for (ptrdiff_t part = 0; part < SAMPLING_LANES; part += LANES) any |= bits_not_less(vf_load(tops + part), least);
        if (!any) continue;
        const ptrdiff_t end = v - start < SAMPLING_GROUP ? v : start + SAMPLING_GROUP;
        for (ptrdiff_t at = start; at < end; at += LANES) {
            unsigned reach = bits_not_less(load_at(row, v, at, -INFINITY), least);
            if (end - at < LANES) reach &= (1u << (end - at)) - 1u; /* a bar of -inf is reached by what is not there */
            count += store_indices(indices + count, (int32_t)at, reach);
        }
    }
    return count;
}

static void forbid(float *row, ptrdiff_t v, const uint32_t *allowed) {
    const vf never = vf_set(-INFINITY);
    for (ptrdiff_t start = 0; start < v; start += 32) {
        uint32_t word = allowed[start / 32];
        if (word == 0xffffffffu) continue;
        const ptrdiff_t end = v - start < 32 ? v : start + 32;
        for (ptrdiff_t at = start; at < end; at += LANES, word >>= LANES) {
            if (end - at >= LANES)
                vf_store(row + at, vf_blend(word, vf_load(row + at), never));
            else
                vf_store_part(row + at, end - at, vf_blend(word, vf_load_part(row + at, end - at, 0.0f), never));
        }
    }
}

const hr_sampling HR_ISA(hr_sampling) = {
    tops_of, sums_of, weights_of, collect, forbid, hr_sample_rows, hr_sample_scratch_bytes,
};
