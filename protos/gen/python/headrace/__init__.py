"""Generated from the .proto files of Headrace; `headrace.v1` is the API."""
