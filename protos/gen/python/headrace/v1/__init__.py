"""Generated messages (`*_pb2`) and stubs (`*_pb2_grpc`) of the API, version 1."""
