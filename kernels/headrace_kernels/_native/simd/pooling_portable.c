#include "vector_portable.h"

#include "pooling_body.h"
