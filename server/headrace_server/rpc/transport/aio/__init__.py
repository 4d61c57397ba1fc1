"""The fallback transport: the same `Call` over grpc.aio, on an event loop of its own."""
