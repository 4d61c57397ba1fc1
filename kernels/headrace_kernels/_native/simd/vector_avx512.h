/* Sixteen lanes of AVX-512 (F, BW, DQ, VL); the words are those of vector_portable.h. */
#ifndef HR_VECTOR_H
#define HR_VECTOR_H

/* GCC declares its intrinsics for the target in force; Clang's carry their own, and a target pushed over them
 * would override it. So the pragma stands before the header for one and after it for the other. */
#if !defined(__clang__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#endif

#define LANES 16
#define TILE_ROWS 4
#define HR_ISA(name) name##_avx512
#define INLINE static inline __attribute__((always_inline, unused))

typedef __m512 vf;

INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
INLINE __mmask16 first_lanes(ptrdiff_t n) { return (__mmask16)((1u << n) - 1u); }
INLINE vf vf_load_part(const float *p, ptrdiff_t n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p);
}
INLINE void vf_store_part(float *p, ptrdiff_t n, vf v) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }

INLINE unsigned bits_greater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE unsigned bits_not_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
INLINE unsigned bits_not_less_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
INLINE vf vf_blend(unsigned bits, vf yes, vf no) { return _mm512_mask_blend_ps((__mmask16)bits, no, yes); }
INLINE ptrdiff_t store_indices(int32_t *p, int32_t first, unsigned bits) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32((__mmask16)bits, indices));
    return __builtin_popcount(bits);
}
INLINE vf vf_positive_or(vf x, vf yes, vf no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), no, yes);
}

INLINE __m128 fold4(vf v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
/* Quarters are transposed and added first, so that four sums share the folding: 8 shuffles rather than 14. */
INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    const vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); /* a02 b02 a13 b13 */
    const vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const vf low = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0));  /* a02 b02 c02 d02 */
    const vf high = _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)); /* a13 b13 c13 d13 */
    _mm_storeu_ps(out, fold4(_mm512_add_ps(low, high)));
}
INLINE float vf_sum(vf v) {
    const __m128 v4 = fold4(v);
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
}
INLINE float vf_largest(vf v) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_scale2(vf p, vf n) { return _mm512_scalef_ps(p, n); }
INLINE void vf_store_int8(int8_t *p, ptrdiff_t n, vf v) {
    _mm512_mask_cvtsepi32_storeu_epi8(p, first_lanes(n), _mm512_cvtps_epi32(v));
}

#endif
