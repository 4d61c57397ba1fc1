"""ONNX Runtime: sessions, how they are asked, and its providers for the CPU, OpenVINO and CUDA."""
