/* Sweeps a variant's exponential over the f32 inputs from -0 down to -110 in steps of argv[1] bit patterns, and
 * prints: inputs, the worst error in ulp among normal answers and among denormal ones, and how many neighbours came
 * out of order. Compiled by test_kernels_exp.py with -DVECTOR=\"vector_<isa>.h\", and
 * -DPORTABLE for the one that has no target to close. */
#include VECTOR

#include "exp_body.h"


#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    const uint32_t step = argc > 1 ? (uint32_t)atol(argv[1]) : 1;
    double worst_normal = 0.0, worst_denormal = 0.0;
    long inputs = 0, inversions = 0;
    float before = INFINITY, x = 0.0f;
    for (uint32_t bits = 0x80000000u; x >= -110.0f; bits += step * LANES) {
        float in[LANES], out[LANES];
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            const uint32_t pattern = bits + lane * step;
            memcpy(in + lane, &pattern, sizeof pattern);
        }
        vf_store(out, vf_exp_nonpositive(vf_load(in)));
        for (int lane = 0; lane < LANES; ++lane, ++inputs) {
            const double truth = exp((double)in[lane]);
            int exponent;
            frexp(truth, &exponent);
            const double ulp = ldexp(1.0, exponent - 24 < -149 ? -149 : exponent - 24);
            const double error = fabs((double)out[lane] - truth) / ulp;
            double *worst = truth >= 0x1p-126 ? &worst_normal : &worst_denormal;
            if (!(error <= *worst)) *worst = error;
            inversions += out[lane] > before;
            before = out[lane];
        }
        x = in[LANES - 1];
    }
    printf("%ld %.4f %.4f %ld\n", inputs, worst_normal, worst_denormal, inversions);
    return 0;
}

#ifndef PORTABLE
#include "vector_end.h"
#endif
