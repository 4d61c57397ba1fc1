#include "vector_portable.h"

#include "sampling_body.h"
