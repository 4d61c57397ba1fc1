/* The library of operators as its Python module sees it. */
#ifndef HEADRACE_OPERATORS_H
#define HEADRACE_OPERATORS_H

#include "rows.h"

/* The variant of sessions that are opened from now on; NULL: none, and registration fails. */
void hr_use_row_kernels(const hr_row_kernels *kernels);

#endif
