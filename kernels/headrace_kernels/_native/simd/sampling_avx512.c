#include "kernels.h"

#if HR_X86
#include "vector_avx512.h"

#include "sampling_body.h"

#include "vector_end.h"
#endif
