"""What the machine has: the CPU, GPUs and their libraries, memory that a GPU reads."""
