/* Closes what a vector_<isa>.h opened: Clang wants its attribute popped, GCC's pragma ends with the file. */
#if defined(__clang__)
#pragma clang attribute pop
#endif
