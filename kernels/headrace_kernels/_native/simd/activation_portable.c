#include "vector_portable.h"

#include "activation_body.h"
