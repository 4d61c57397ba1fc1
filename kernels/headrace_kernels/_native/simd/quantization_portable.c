#include "vector_portable.h"

#include "quantization_body.h"
