#include "vector_portable.h"

#include "selection_body.h"
