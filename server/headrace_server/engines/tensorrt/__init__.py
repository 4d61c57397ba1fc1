"""TensorRT: plans built, kept and loaded, and run on slots of a GPU."""
