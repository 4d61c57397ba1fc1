"""The direct transport: an event-driven server on the C-core inside the stock grpcio wheel (a private API)."""
