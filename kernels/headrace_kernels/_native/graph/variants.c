/* The variants of this build, and which of them this machine can run. Others than x86-64 have none: there the
 * runtime's own operators, which a graph names as a function's body, are as good. */
#include "rows.h"

#include "scan_amx.h"

#include <string.h>

#if HR_X86
extern const hr_row_kernels hr_rows_avx512_vnni, hr_rows_amx;

static const hr_row_kernels *const variants[] = {&hr_rows_amx, &hr_rows_avx512_vnni};

int hr_num_row_variants(void) { return 2; }

const hr_row_kernels *hr_row_variant(int position) { return variants[position]; }

int hr_row_variant_runs(int position) {
    __builtin_cpu_init(); /* asks XGETBV too */
    const int has_vnni = __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return has_vnni && (strcmp(variants[position]->isa, "amx") != 0 || hr_amx_permitted());
}
#else
int hr_num_row_variants(void) { return 0; }

const hr_row_kernels *hr_row_variant(int position) {
    (void)position;
    return NULL;
}

int hr_row_variant_runs(int position) {
    (void)position;
    return 0;
}
#endif
