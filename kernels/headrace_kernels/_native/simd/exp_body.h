/* exp(x) for x <= 0 on a vector, -inf gives 0: at most 1.01 ulp off and never out of order, over every f32 input
 * (tests/unit/kernels/exp_sweep.c measures it).
 *
 * x = n ln2 + r with |r| <= ln2 / 2; ln2 is split so that n * LN2_HIGH is exact for |n| < 2^12; exp(r) is
 * 1 + r + r^2 q(r) with q of degree 4, fitted for the least largest relative error (3e-9 before rounding).
 */
#ifndef HR_EXP_BODY_H
#define HR_EXP_BODY_H

#define LN2_HIGH 0x1.62ep-1f
#define LN2_LOW 0x1.0bfbe8p-15f
/* Below this, exp(x) is under half the least denormal and rounds to 0. */
#define EXP_FLOOR (-104.0f)

INLINE vf vf_exp_nonpositive(vf x) {
    x = vf_max(x, vf_set(EXP_FLOOR));
    const vf n = vf_round(vf_mul(x, vf_set(0x1.715476p0f)));
    const vf r = vf_fma(n, vf_set(-LN2_LOW), vf_fma(n, vf_set(-LN2_HIGH), x));
    vf q = vf_set(0x1.6a23d0p-10f);
    q = vf_fma(q, r, vf_set(0x1.123a20p-7f));
    q = vf_fma(q, r, vf_set(0x1.5558f2p-5f));
    q = vf_fma(q, r, vf_set(0x1.555492p-3f));
    q = vf_fma(q, r, vf_set(0x1.fffffcp-2f));
    /* The 1 is added last, to a value of at most 0.42: that is where the accuracy comes from. */
    const vf tail = vf_fma(vf_mul(r, r), q, r);
    return vf_scale2(vf_add(tail, vf_set(1.0f)), n);
}

#endif
