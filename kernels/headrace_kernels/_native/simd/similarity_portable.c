#include "vector_portable.h"

#include "similarity_body.h"
