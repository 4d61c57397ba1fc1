/* Four lanes of GCC's and Clang's vector extension: SSE2, NEON, or whatever the compiler lowers it to.
 *
 * Each vector_<isa>.h says the same words: a float vector `vf` of LANES lanes, `bits_*` comparisons that answer one
 * bit a lane, partial loads and stores of the first n lanes (0 < n <= LANES). */
#ifndef HR_VECTOR_H
#define HR_VECTOR_H

#if !defined(__GNUC__)
#error "headrace_kernels needs GCC or Clang: the portable variant uses their vector extensions"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 4
#define TILE_ROWS 2
#define HR_ISA(name) name##_portable
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf vf_load_part(const float *p, ptrdiff_t n, float fill) {
    vf v = vf_set(fill);
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
INLINE void vf_store_part(float *p, ptrdiff_t n, vf v) {
    for (ptrdiff_t i = 0; i < n; ++i) p[i] = v[i];
}
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); } /* b where either is NaN */
INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
INLINE vf vf_abs(vf a) { return (vf)((vi)a & (vi){0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff}); }

INLINE unsigned bits_of(vi mask) {
    return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}
INLINE unsigned bits_greater(vf a, vf b) { return bits_of(a > b); }
INLINE unsigned bits_not_less(vf a, vf b) { return bits_of(~(a < b)); }       /* true where unordered */
INLINE unsigned bits_not_less_equal(vf a, vf b) { return bits_of(~(a <= b)); } /* true where unordered */
/* The lanes of `yes` whose bit is set, of `no` elsewhere; bits past LANES are not looked at. */
INLINE vf vf_blend(unsigned bits, vf yes, vf no) {
    const vi places = {1, 2, 4, 8}, all = {(int32_t)bits, (int32_t)bits, (int32_t)bits, (int32_t)bits};
    return vf_select((all & places) != 0, yes, no);
}
/* Writes first + lane for each bit set, ascending; answers how many. May write LANES places. */
INLINE ptrdiff_t store_indices(int32_t *p, int32_t first, unsigned bits) {
    ptrdiff_t count = 0;
    for (; bits; bits &= bits - 1) p[count++] = first + __builtin_ctz(bits);
    return count;
}
INLINE vf vf_positive_or(vf x, vf yes, vf no) { return vf_select(x >= vf_set(0.0f), yes, no); }

/* Four vectors to four sums. A lone vector's sum (vf_sum) may associate otherwise: products of rows use only this. */
INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
}
INLINE float vf_sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
INLINE float vf_largest(vf v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

/* Nearest integer, halves to even, for |x| < 2^22: the addition rounds away the fraction. */
INLINE vf vf_round(vf x) {
    const vf magic = vf_set(12582912.0f);
    return (x + magic) - magic;
}
/* p * 2^n for whole n in [-160, 126], in two exact steps so that only the last can round (to a denormal). */
INLINE vf vf_scale2(vf p, vf n) {
    const vi whole = {(int32_t)n[0], (int32_t)n[1], (int32_t)n[2], (int32_t)n[3]};
    const vi half = whole >> 1, rest = whole - half;
    const vi bias = {127, 127, 127, 127};
    return (p * (vf)((half + bias) << 23)) * (vf)((rest + bias) << 23);
}
/* Whole numbers in [-128, 127] as bytes. */
INLINE void vf_store_int8(int8_t *p, ptrdiff_t n, vf v) {
    for (ptrdiff_t i = 0; i < n; ++i) p[i] = (int8_t)v[i];
}

#endif
