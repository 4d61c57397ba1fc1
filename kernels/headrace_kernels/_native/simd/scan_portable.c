#include "vector_portable.h"

typedef double d2 __attribute__((vector_size(16)));
typedef float f2 __attribute__((vector_size(8)));

typedef struct {
    d2 s01, s23, s45, s67;
} d8;

INLINE d8 d8_zero(void) { return (d8){{0, 0}, {0, 0}, {0, 0}, {0, 0}}; }
INLINE void add_two(d2 *sums, const float *x, const double *y) {
    f2 xs;
    d2 ys;
    memcpy(&xs, x, sizeof xs);
    memcpy(&ys, y, sizeof ys);
    *sums += __builtin_convertvector(xs, d2) * ys;
}
INLINE d8 d8_add_products(d8 sums, const float *x, const double *y) {
    add_two(&sums.s01, x, y);
    add_two(&sums.s23, x + 2, y + 2);
    add_two(&sums.s45, x + 4, y + 4);
    add_two(&sums.s67, x + 6, y + 6);
    return sums;
}
INLINE float d8_score(d8 s) {
    const d2 pair = (s.s01 + s.s45) + (s.s23 + s.s67);
    return (float)(pair[0] + pair[1]);
}
INLINE void d8_score4(d8 a, d8 b, d8 c, d8 d, float *out) {
    out[0] = d8_score(a);
    out[1] = d8_score(b);
    out[2] = d8_score(c);
    out[3] = d8_score(d);
}

#include "scan_body.h"

static void scan_codes(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last,
                       hr_best *best) {
    for (ptrdiff_t block = first; block < last; ++block) {
        const uint8_t *codes = items->blocks + block * block_bytes(items);
        const float *scales = (const float *)(codes + 64 * items->num_quads);
        int32_t high[SCAN_BLOCK], low[SCAN_BLOCK];
        float values[SCAN_BLOCK];
        for (int r = 0; r < SCAN_BLOCK; ++r) {
            high[r] = query->high_bias;
            low[r] = query->low_bias;
        }
        for (ptrdiff_t j = 0; j < items->num_quads; ++j, codes += 64)
            for (int r = 0; r < SCAN_BLOCK; ++r)
                for (int e = 0; e < 4; ++e) {
                    high[r] += codes[r * 4 + e] * query->high[j * 4 + e];
                    low[r] += codes[r * 4 + e] * query->low[j * 4 + e];
                }
        for (int r = 0; r < SCAN_BLOCK; ++r)
            values[r] = scales[r] * ((float)high[r] + (float)low[r] * (1.0f / 254.0f) + query->slack);
        const unsigned mask = reaching(values, best->threshold);
        if (mask) hr_best_push(best, block * SCAN_BLOCK, values, mask);
    }
}

const hr_scan hr_scan_portable = {"portable", scan_rows, gather_rows, scan_tiles, scan_codes, NULL, TILE_QUERIES, 0};
