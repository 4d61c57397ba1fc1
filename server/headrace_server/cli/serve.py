"""`headrace serve DIR`: options and HEADRACE_… variables into a ServerConfig."""

from __future__ import annotations

import enum
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from headrace_server.cli.engine_cache import engine_cache as engine_cache_directory
from headrace_server.cli.faults import USAGE, fail, plain_failures
from headrace_server.cli.management import AUTO, kept_state, management_address
from headrace_server.config import (
    AdminOptions,
    BatchPolicy,
    CatalogOptions,
    EngineOptions,
    LifecycleOptions,
    ManagementOptions,
    ServerConfig,
    ThreadBudget,
    TlsOptions,
    TracingOptions,
    TransportOptions,
)
from headrace_server.errors import ServingError

__all__ = ["LogFormat", "LogLevel", "TransportChoice", "admin_address", "log_style", "serve"]


class TransportChoice(enum.StrEnum):
    """Which gRPC transport serves."""

    AUTO = "auto"
    DIRECT = "direct"
    AIO = "aio"


class LogLevel(enum.StrEnum):
    """From which level on lines are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.StrEnum):
    """How a line is written: auto is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def _option(env: str, help_text: str, panel: str, **more: Any) -> Any:
    return typer.Option(envvar=f"HEADRACE_{env}", help=help_text, rich_help_panel=panel, **more)


_LISTENERS, _ENGINES, _BATCHES, _LIMITS, _RUNNING = "Listeners", "Engines", "Batches", "Limits", "Running"
_VERSIONS, _TRACES = "Versions", "Traces"

# fmt: off
Listen = Annotated[list[str] | None, _option(
    "LISTEN", "host:port (port 0: a free one) or unix:PATH; may be given more than once. (default: 127.0.0.1:50051)",
    _LISTENERS, metavar="ADDRESS", show_default=False)]
Admin = Annotated[str, _option("ADMIN", "host:port of metrics and health over HTTP, or off.", _LISTENERS)]
Management = Annotated[str, _option(
    "MANAGEMENT", "host:port or unix:PATH where versions are loaded, labelled and split, without TLS; or off. auto: "
    "127.0.0.1, one port above the first --listen.", _LISTENERS)]
ManagementOnDataPort = Annotated[bool, _option(
    "MANAGEMENT_ON_DATA_PORT", "Let whoever may ask the models change them too.", _LISTENERS)]
Transport = Annotated[TransportChoice, _option("TRANSPORT", "How gRPC is served.", _LISTENERS)]
TlsCert = Annotated[Path | None, _option("TLS_CERT", "Server certificate, PEM.", _LISTENERS)]
TlsKey = Annotated[Path | None, _option("TLS_KEY", "Its private key, PEM.", _LISTENERS)]
TlsClientCa = Annotated[Path | None, _option(
    "TLS_CLIENT_CA", "Authorities whose client certificates are required, PEM.", _LISTENERS)]
Reflection = Annotated[bool, _option("REFLECTION", "Tell callers the API by reflection.", _LISTENERS)]
Device = Annotated[str, _option(
    "DEVICE", "cpu, openvino, cuda[:n] or tensorrt[:n]; auto: what is there is measured at load, the fastest serves.",
    _ENGINES)]
Precision = Annotated[str, _option(
    "PRECISION", "fp32, bf16, fp16 or int8; auto: what the device computes fastest with the same answers.", _ENGINES)]
EngineCache = Annotated[str, _option(
    "ENGINE_CACHE", "Directory that keeps what was measured and built, or off. auto: headrace/engines in the user's "
    "cache directory.", _ENGINES, metavar="DIR")]
Workers = Annotated[int, _option("WORKERS", "Engine runs in flight a model; 0: one a core.", _ENGINES)]
IntraOpThreads = Annotated[int, _option(
    "INTRA_OP_THREADS", "Threads inside one run; 0: cores ÷ workers.", _ENGINES)]
MaxBatchSize = Annotated[int, _option("MAX_BATCH_SIZE", "Rows an engine run; 1: no batching.", _BATCHES)]
MaxDelayMs = Annotated[float, _option(
    "MAX_DELAY_MS", "How long a free worker waits for more rows; 0: takes what is there.", _BATCHES)]
MaxQueueRows = Annotated[int, _option(
    "MAX_QUEUE_ROWS", "Rows waiting a model; beyond it requests are refused.", _BATCHES)]
MaxMessageBytes = Annotated[int, _option("MAX_MESSAGE_BYTES", "Largest request or response.", _LIMITS)]
MaxConcurrentStreams = Annotated[int, _option("MAX_CONCURRENT_STREAMS", "RPCs in flight a connection.", _LIMITS)]
Versions = Annotated[str, _option(
    "VERSIONS", "all, latest or latest:N: which versions found are loaded.", _VERSIONS)]
PollS = Annotated[float, _option(
    "POLL_S", "How often DIR is looked at for new versions, seconds; 0: only when asked.", _VERSIONS)]
State = Annotated[str, _option(
    "STATE", "File that keeps what operators decide about versions, or off. auto: .headrace-state.json in DIR, where "
    "it can be written.", _VERSIONS, metavar="PATH")]
MemoryBudgetMb = Annotated[int, _option(
    "MEMORY_BUDGET_MB", "For all loaded models; 0: no limit.", _VERSIONS)]
IdleUnloadS = Annotated[float, _option(
    "IDLE_UNLOAD_S", "A version that nobody asked for so long gives its memory back, seconds; 0: never.", _VERSIONS)]
TraceEndpoint = Annotated[str | None, _option(
    "TRACE_ENDPOINT", "OTLP/HTTP collector that gets traces, http://host:4318.", _TRACES, show_default=False)]
TraceSampleRatio = Annotated[float, _option(
    "TRACE_SAMPLE_RATIO", "Share of the traces that begin here; a caller's own decision stands.", _TRACES)]
Catalogs = Annotated[Path | None, _option(
    "CATALOGS", "Directory of item catalogs, made where it is missing; without it there are none.", _RUNNING,
    metavar="DIR", show_default=False)]
LogLevelOption = Annotated[LogLevel, _option("LOG_LEVEL", "debug also logs every answered call.", _RUNNING)]
LogFormatOption = Annotated[LogFormat, _option("LOG_FORMAT", "auto: text on a terminal, else JSON.", _RUNNING)]
LogSlowS = Annotated[float, _option(
    "LOG_SLOW_S", "RPCs that ask a model and take so long are logged, with where the time went; 0: none.", _RUNNING)]
DrainGraceS = Annotated[float, _option(
    "DRAIN_GRACE_S", "Seconds that running requests may take after a stop.", _RUNNING)]
PortFile = Annotated[Path | None, _option(
    "PORT_FILE", "Write the real addresses here, one a line: `grpc ADDRESS`, `admin ADDRESS`, `management ADDRESS`.",
    _RUNNING)]
Strict = Annotated[bool, _option("STRICT", "Fail where any model cannot be loaded.", _RUNNING)]
# fmt: on

_TRANSPORT, _BATCHING, _LIFECYCLE, _TRACING = TransportOptions(), BatchPolicy(), LifecycleOptions(), TracingOptions()


def serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", envvar="HEADRACE_REPOSITORY", help="Models, or one model's folder.")
    ],
    catalogs: Catalogs = None,
    listen: Listen = None,
    admin: Admin = "127.0.0.1:9090",
    management: Management = AUTO,
    management_on_data_port: ManagementOnDataPort = False,
    transport: Transport = TransportChoice.AUTO,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    reflection: Reflection = True,
    device: Device = "auto",
    precision: Precision = "auto",
    engine_cache: EngineCache = AUTO,
    workers: Workers = 0,
    intra_op_threads: IntraOpThreads = 0,
    max_batch_size: MaxBatchSize = _BATCHING.max_batch_size,
    max_delay_ms: MaxDelayMs = _BATCHING.max_delay_ms,
    max_queue_rows: MaxQueueRows = _BATCHING.max_queue_rows,
    max_message_bytes: MaxMessageBytes = _TRANSPORT.max_message_bytes,
    max_concurrent_streams: MaxConcurrentStreams = _TRANSPORT.max_concurrent_streams,
    versions: Versions = _LIFECYCLE.versions,
    poll_s: PollS = _LIFECYCLE.poll_s,
    state: State = AUTO,
    memory_budget_mb: MemoryBudgetMb = _LIFECYCLE.memory_budget_mb,
    idle_unload_s: IdleUnloadS = _LIFECYCLE.idle_unload_s,
    trace_endpoint: TraceEndpoint = None,
    trace_sample_ratio: TraceSampleRatio = _TRACING.sample_ratio,
    log_level: LogLevelOption = LogLevel.INFO,
    log_format: LogFormatOption = LogFormat.AUTO,
    log_slow_s: LogSlowS = 0.0,
    drain_grace_s: DrainGraceS = _TRANSPORT.drain_grace_s,
    port_file: PortFile = None,
    strict: Strict = False,
) -> None:
    """Serve the models in DIR over gRPC until SIGINT or SIGTERM; a second signal ends it at once."""
    from headrace_server.cli.running import run_server

    addresses = tuple(listen or _TRANSPORT.listen)
    try:
        config = ServerConfig(
            repository=directory,
            threads=ThreadBudget(num_workers=workers, intra_op_threads=intra_op_threads),
            engine=EngineOptions(device=device, precision=precision, cache=engine_cache_directory(engine_cache)),
            batching=BatchPolicy(
                max_batch_size=max_batch_size, max_delay_ms=max_delay_ms, max_queue_rows=max_queue_rows
            ),
            transport=TransportOptions(
                listen=addresses,
                transport=transport.value,
                tls=_tls(tls_cert, tls_key, tls_client_ca),
                max_message_bytes=max_message_bytes,
                max_concurrent_streams=max_concurrent_streams,
                drain_grace_s=drain_grace_s,
                reflection=reflection,
            ),
            admin=AdminOptions(listen=admin_address(admin)),
            catalogs=CatalogOptions(directory=catalogs),
            lifecycle=LifecycleOptions(
                versions=versions, poll_s=poll_s, memory_budget_mb=memory_budget_mb, idle_unload_s=idle_unload_s
            ),
            management=ManagementOptions(
                listen=management_address(management, addresses), on_data_port=management_on_data_port
            ),
            tracing=TracingOptions(endpoint=trace_endpoint, sample_ratio=trace_sample_ratio),
            log_level=log_level.value,
            log_format=log_style(log_format),
            log_slow_s=log_slow_s,
        )
    except ServingError as error:
        raise fail(_in_option_terms(error), cure="`headrace serve --help` lists the options", status=USAGE) from None
    with plain_failures(), kept_state(directory, state) as (state_file, remark):
        config = replace(config, lifecycle=replace(config.lifecycle, state_file=state_file))
        run_server(config, port_file=port_file, strict=strict, remark=remark)


def admin_address(value: str) -> str | None:
    """The address to open; None where the admin listener is off."""
    return None if value.lower() in ("off", "") else value


def _tls(certificate: Path | None, key: Path | None, authorities: Path | None) -> TlsOptions | None:
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None:
        raise fail(
            "TLS needs both a certificate and its key", cure="give --tls-cert and --tls-key together", status=USAGE
        )
    return TlsOptions(certificate=certificate, private_key=key, client_authorities=authorities)


def log_style(choice: LogFormat) -> Literal["json", "text"]:
    import sys

    if choice is LogFormat.AUTO:
        return "text" if sys.stderr.isatty() else "json"
    return cast('Literal["json", "text"]', choice.value)


def _in_option_terms(error: ServingError) -> str:
    """What is wrong, named as the option is."""
    names = {"num_workers": "workers", "sample_ratio": "trace_sample_ratio"}
    said = []
    for violation in error.violations:
        field = violation.field.rpartition(".")[2]
        said.append(f"--{names.get(field, field).replace('_', '-')}: {violation.description}")
    return "; ".join(said) or error.message
