#include "kernels.h"

#if HR_X86
#include "scan_avx512_rows.h"

#include "scan_body.h"

void hr_scan_rows_avx512(const hr_items *items, const double *query, ptrdiff_t first, ptrdiff_t last, hr_best *best) {
    scan_rows(items, query, first, last, best);
}

void hr_gather_rows_avx512(const hr_items *items, const double *query, const int32_t *rows, ptrdiff_t count,
                           float *scores) {
    gather_rows(items, query, rows, count, scores);
}

void hr_scan_tiles_avx512(const hr_items *items, const float *queries, int num_queries, ptrdiff_t first,
                          ptrdiff_t last, hr_best *best) {
    scan_tiles(items, queries, num_queries, first, last, best);
}

/* Without VNNI a wider vector gains nothing on codes: memory is the limit. */
void hr_scan_codes_avx2(const hr_items *items, const hr_code_query *query, ptrdiff_t first, ptrdiff_t last,
                        hr_best *best);

const hr_scan hr_scan_avx512 = {"avx512", scan_rows, gather_rows, scan_tiles, hr_scan_codes_avx2, NULL,
                                TILE_QUERIES, 1};

#include "vector_end.h"
#endif
