/* A tile of query rows: scores of all keys it sees, softmax row by row, then the values' sums.
 *
 * Keys are turned 32 at a time, so that a lane is a key and a row's score is summed from its first channel to its last;
 * values are summed from the first key to the last. Nothing depends on how many rows share a tile, so that decoding a
 * token and reading it in a prompt give the same bits. */
#include "rows.h"

#include "attention.h"

#if HR_X86
#include "vector_avx512.h"

#include "exp_body.h"

#include <float.h>

#define MAX_ROWS (ATTENTION_ROWS > ATTENTION_MAX_GROUP ? ATTENTION_ROWS : ATTENTION_MAX_GROUP)

/* Sixteen channels of sixteen keys, written one channel a line of ATTENTION_KEYS floats. */
INLINE void turn(const float *keys, ptrdiff_t dim, float *out) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(keys + i * dim);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int k = 0; k < 4; ++k) {
        const __m512 a = _mm512_shuffle_f32x4(r[k], r[4 + k], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0x88);
        const __m512 c = _mm512_shuffle_f32x4(r[k], r[4 + k], 0xdd);
        const __m512 d = _mm512_shuffle_f32x4(r[8 + k], r[12 + k], 0xdd);
        _mm512_store_ps(out + k * ATTENTION_KEYS, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_store_ps(out + (4 + k) * ATTENTION_KEYS, _mm512_shuffle_f32x4(c, d, 0x88));
        _mm512_store_ps(out + (8 + k) * ATTENTION_KEYS, _mm512_shuffle_f32x4(a, b, 0xdd));
        _mm512_store_ps(out + (12 + k) * ATTENTION_KEYS, _mm512_shuffle_f32x4(c, d, 0xdd));
    }
}

/* Keys first ... first + 31, turned; those that there are no more are zero. */
static void turn_keys(const hr_attention *of, ptrdiff_t first, float *turned) {
    _Alignas(64) float rest[16 * ATTENTION_MAX_DIM];
    for (ptrdiff_t half = 0; half < ATTENTION_KEYS; half += 16) {
        const float *keys = of->keys + (first + half) * of->dim;
        const ptrdiff_t left = of->num_keys - first - half;
        if (left < 16) {
            const size_t there = left > 0 ? (size_t)(left * of->dim) : 0;
            memset(rest, 0, sizeof rest);
            if (there) memcpy(rest, keys, there * sizeof(float));
            keys = rest;
        }
        for (ptrdiff_t d = 0; d < of->dim; d += 16) turn(keys + d, of->dim, turned + d * ATTENTION_KEYS + half);
    }
}

INLINE void score(const float *const *queries, int count, const float *turned, ptrdiff_t dim, float *scores,
                  ptrdiff_t stride) {
    __m512 first[8], second[8];
    for (int i = 0; i < count; ++i) first[i] = second[i] = _mm512_setzero_ps();
    for (ptrdiff_t d = 0; d < dim; ++d) {
        const __m512 a = _mm512_load_ps(turned + d * ATTENTION_KEYS);
        const __m512 b = _mm512_load_ps(turned + d * ATTENTION_KEYS + 16);
        for (int i = 0; i < count; ++i) {
            const __m512 query = _mm512_set1_ps(queries[i][d]);
            first[i] = _mm512_fmadd_ps(query, a, first[i]);
            second[i] = _mm512_fmadd_ps(query, b, second[i]);
        }
    }
    for (int i = 0; i < count; ++i) {
        _mm512_storeu_ps(scores + i * stride, first[i]);
        _mm512_storeu_ps(scores + i * stride + 16, second[i]);
    }
}

/* exp(score - largest) of the first `count`, zeros up to `stride`; their sum. */
static float soften(float *scores, ptrdiff_t count, ptrdiff_t stride) {
    vf peaks = vf_set(-FLT_MAX), sums = vf_set(0.0f);
    for (ptrdiff_t k = 0; k < count; k += LANES)
        peaks = vf_max(k + LANES <= count ? vf_load(scores + k) : vf_load_part(scores + k, count - k, -FLT_MAX), peaks);
    const vf peak = vf_set(vf_largest(peaks));
    for (ptrdiff_t k = 0; k < stride; k += LANES) {
        vf share = vf_set(0.0f);
        if (k < count) {
            share = vf_exp_nonpositive(vf_sub(vf_load(scores + k), peak));
            if (k + LANES > count) share = vf_blend(first_lanes(count - k), share, vf_set(0.0f));
        }
        sums = vf_add(sums, share);
        vf_store(scores + k, share);
    }
    return vf_sum(sums);
}

INLINE void mix(const float *shares, ptrdiff_t stride, int count, ptrdiff_t num_keys, const float *values,
                ptrdiff_t dim, int width, const float *sums, float *const *out) {
    __m512 mixed[6][4];
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j) mixed[i][j] = _mm512_setzero_ps();
    for (ptrdiff_t k = 0; k < num_keys; ++k) {
        __m512 value[4];
        for (int j = 0; j < width; ++j) value[j] = _mm512_loadu_ps(values + k * dim + j * 16);
        for (int i = 0; i < count; ++i) {
            const __m512 share = _mm512_set1_ps(shares[i * stride + k]);
            for (int j = 0; j < width; ++j) mixed[i][j] = _mm512_fmadd_ps(share, value[j], mixed[i][j]);
        }
    }
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < width; ++j)
            _mm512_storeu_ps(out[i] + j * 16, _mm512_div_ps(mixed[i][j], _mm512_set1_ps(sums[i])));
}

INLINE void mix_rows(const float *shares, ptrdiff_t stride, int count, ptrdiff_t num_keys, const hr_attention *of,
                     const float *sums, float *const *rows) {
    float *out[6];
    ptrdiff_t d = 0;
    for (int i = 0; i < count; ++i) out[i] = rows[i];
    for (; d + 64 <= of->dim; d += 64) {
        mix(shares, stride, count, num_keys, of->values + d, of->dim, 4, sums, out);
        for (int i = 0; i < count; ++i) out[i] += 64;
    }
    for (; d < of->dim; d += 16) {
        mix(shares, stride, count, num_keys, of->values + d, of->dim, 1, sums, out);
        for (int i = 0; i < count; ++i) out[i] += 16;
    }
}

void hr_attend_avx512(const hr_attention *of, float *scratch) {
    const ptrdiff_t rows = of->count * of->group, seen = of->past + of->first + of->count; /* by the last token */
    const ptrdiff_t stride = (seen + ATTENTION_KEYS - 1) / ATTENTION_KEYS * ATTENTION_KEYS;
    const float *queries[MAX_ROWS];
    float *out[MAX_ROWS];
    float *turned = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    float *scores = turned + of->dim * ATTENTION_KEYS, *sums = scores + rows * stride;
    for (ptrdiff_t row = 0; row < rows; ++row) {
        const ptrdiff_t place = (of->first + row / of->group) * of->stride + row % of->group * of->dim;
        queries[row] = of->queries + place;
        out[row] = of->out + place;
    }
    for (ptrdiff_t key = 0; key < seen; key += ATTENTION_KEYS) {
        /* Rows of tokens that see none of these keys are passed over. */
        ptrdiff_t row = key > of->past + of->first ? (key - of->past - of->first) * of->group : 0;
        turn_keys(of, key, turned);
        for (; row + 8 <= rows; row += 8) score(queries + row, 8, turned, of->dim, scores + row * stride + key, stride);
        if (rows - row >= 4) {
            score(queries + row, 4, turned, of->dim, scores + row * stride + key, stride);
            row += 4;
        }
        switch (rows - row) {
        case 3: score(queries + row, 3, turned, of->dim, scores + row * stride + key, stride); break;
        case 2: score(queries + row, 2, turned, of->dim, scores + row * stride + key, stride); break;
        case 1: score(queries + row, 1, turned, of->dim, scores + row * stride + key, stride); break;
        default: break;
        }
    }
    for (ptrdiff_t row = 0; row < rows; ++row)
        sums[row] = soften(scores + row * stride, of->past + of->first + row / of->group + 1, stride);
    for (ptrdiff_t row = 0; row < rows;) {
        const ptrdiff_t left = rows - row, count = left >= 6 ? 6 : left >= 3 ? 3 : 1;
        const ptrdiff_t num_keys = of->past + of->first + (row + count - 1) / of->group + 1;
        const float *shares = scores + row * stride;
        if (count == 6) mix_rows(shares, stride, 6, num_keys, of, sums + row, out + row);
        else if (count == 3) mix_rows(shares, stride, 3, num_keys, of, sums + row, out + row);
        else mix_rows(shares, stride, 1, num_keys, of, sums + row, out + row);
        row += count;
    }
}

#include "vector_end.h"
#endif
