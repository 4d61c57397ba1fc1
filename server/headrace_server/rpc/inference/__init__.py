"""inference.GRPCInferenceService: the Open Inference Protocol over the same loaded models."""
