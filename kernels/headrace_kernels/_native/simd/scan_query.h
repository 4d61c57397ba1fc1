/* Queries made ready for one pass over the rows. */
#ifndef HEADRACE_SCAN_QUERY_H
#define HEADRACE_SCAN_QUERY_H

#include "scan.h"

typedef struct {
    int num_queries, num_tiles;
    float *plain;                /* f32[num_queries][stride], zero-padded, unit rows where cosines are asked for */
    double *exact;               /* f64[num_queries][stride]: the same numbers */
    double norm[SCAN_QUERIES];
    double row_error[SCAN_QUERIES]; /* a tile's f32 sum is at most this far from the score */
    double code_scale[SCAN_QUERIES]; /* scores are values times this, for values made from codes */
    int tile_queries;
    float *tiles;                /* f32[ceil(num_queries / tile_queries)][stride][tile_queries], or NULL */
    hr_code_query one_by_one[SCAN_QUERIES];
    hr_code_batch batch;
    void *memory;
} hr_queries;

enum { BY_ROWS, BY_TILES, BY_CODES, BY_CODE_TILES };

/* Takes f32[count][dimension]; 0, or -1 when memory is short. */
int hr_queries_make(hr_queries *queries, const hr_scan *kernels, const hr_items *items, const float *rows, int count,
                    int normalize, int way);
void hr_queries_end(hr_queries *queries);

#endif
