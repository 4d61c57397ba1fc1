"""What the server tells its operator: structured logs, Prometheus metrics, and the admin listener that serves them.

    logs.py          one line an event, JSON or text
    metrics.py       everything that is counted or read, in one registry
    admin.py         /metrics, /healthz, /readyz
    tracing.py       OpenTelemetry spans of RPCs, batches and what they went through; call_trace.py says which

The rooms know Protocols (`RpcObserver`, `BatchObserver`, `RequestObserver`, `DecoderObserver`); `Metrics.rpc`,
`Metrics.serving` and `Metrics.decoder` are those.
"""
