/* Eight lanes of AVX2 with FMA; the words are those of vector_portable.h. */
#ifndef HR_VECTOR_H
#define HR_VECTOR_H

/* GCC declares its intrinsics for the target in force; Clang's carry their own, and a target pushed over them
 * would override it. So the pragma stands before the header for one and after it for the other. */
#if !defined(__clang__)
#pragma GCC target("avx2,fma")
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#endif

#define LANES 8
#define TILE_ROWS 2
#define HR_ISA(name) name##_avx2
#define INLINE static inline __attribute__((always_inline, unused))

typedef __m256 vf;

INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
INLINE __m256i first_lanes(ptrdiff_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf vf_load_part(const float *p, ptrdiff_t n, float fill) {
    const __m256i lanes = first_lanes(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
}
INLINE void vf_store_part(float *p, ptrdiff_t n, vf v) { _mm256_maskstore_ps(p, first_lanes(n), v); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

INLINE unsigned bits_greater(vf a, vf b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
INLINE unsigned bits_not_less(vf a, vf b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
INLINE unsigned bits_not_less_equal(vf a, vf b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ));
}
INLINE vf vf_blend(unsigned bits, vf yes, vf no) {
    const __m256i places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32((int)bits), places);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, places)));
}
INLINE ptrdiff_t store_indices(int32_t *p, int32_t first, unsigned bits) {
    ptrdiff_t count = 0;
    for (; bits; bits &= bits - 1) p[count++] = first + __builtin_ctz(bits);
    return count;
}
INLINE vf vf_positive_or(vf x, vf yes, vf no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}

INLINE __m128 fold4(vf v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
/* Halves are transposed and added first, so that four sums share the folding. */
INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    const vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); /* a02 b02 a13 b13 */
    const vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const vf low = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0));  /* a02 b02 c02 d02 */
    const vf high = _mm256_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)); /* a13 b13 c13 d13 */
    _mm_storeu_ps(out, fold4(_mm256_add_ps(low, high)));
}
INLINE float vf_sum(vf v) {
    const __m128 v4 = fold4(v);
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
}
INLINE float vf_largest(vf v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_scale2(vf p, vf n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    const vf first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const vf second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(p, first), second);
}
INLINE void vf_store_int8(int8_t *p, ptrdiff_t n, vf v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (n == LANES) {
        _mm_storel_epi64((__m128i *)p, bytes);
    } else {
        int8_t lane[16];
        _mm_storeu_si128((__m128i *)lane, bytes);
        memcpy(p, lane, (size_t)n);
    }
}

#endif
