/* Rows laid out for scans, and what a query needs of the same. */
#ifndef HEADRACE_SCAN_PACK_H
#define HEADRACE_SCAN_PACK_H

#include "scan.h"

double hr_row_norm(const float *row, ptrdiff_t d);
void hr_unit_row(float *row, ptrdiff_t d, double norm);
int hr_pack(const float *vectors, ptrdiff_t n, ptrdiff_t d, int normalize, int with_codes, hr_items *items);
void hr_release(hr_items *items);

#endif
