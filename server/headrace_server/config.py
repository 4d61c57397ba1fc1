"""What an operator may choose, as frozen values nested by noun. Validated once, passed in, never fetched.

`cli` is the only reader of arguments and environment; a model's `headrace.toml` may override `EngineOptions` and
`BatchPolicy` for that model. Every class raises ServingError CONFIG_INVALID, naming field, value and limit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from headrace_server.errors import Reason, ServingError, Violation

__all__ = [
    "AdminOptions",
    "BatchPolicy",
    "CatalogOptions",
    "CudaOptions",
    "DecoderPolicy",
    "EngineOptions",
    "InputLimits",
    "LifecycleOptions",
    "ManagementOptions",
    "ServerConfig",
    "ShapeProfile",
    "TensorRtOptions",
    "ThreadBudget",
    "TlsOptions",
    "TracingOptions",
    "TransportOptions",
]

TransportName = Literal["auto", "direct", "aio"]


def _require(condition: bool, field_name: str, value: Any, limit: str) -> None:
    if not condition:
        description = f"{value!r}, {limit}"
        raise ServingError(
            Reason.CONFIG_INVALID, f"{field_name}: {description}", violations=[Violation(field_name, description)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadBudget:
    """The one divider of cores among engine workers, the sessions inside them, kernels and request preparation.

    Small batches on few cores are served best by one single-threaded run per core, so workers get the cores first and
    each run gets what is left over per worker.
    """

    num_cores: int = field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )
    num_workers: int = 0  # engine runs in flight per model; 0: one a core
    intra_op_threads: int = 0  # threads inside one run; 0: cores ÷ workers
    kernel_threads: int = 0  # threads a scoring kernel may use; 0: all cores
    prepare_threads: int = 0  # threads that decode and tokenise requests; 0: one a core, at least 2

    def __post_init__(self) -> None:
        _require(self.num_cores >= 1, "threads.num_cores", self.num_cores, "at least 1")
        for name in ("num_workers", "intra_op_threads", "kernel_threads", "prepare_threads"):
            _require(
                0 <= getattr(self, name) <= 1024, f"threads.{name}", getattr(self, name), "from 0 (chosen) to 1024"
            )

    def resolved(self) -> ThreadBudget:
        """The same budget with every 0 replaced by its number."""
        workers = self.num_workers or max(1, self.num_cores // (self.intra_op_threads or 1))
        return ThreadBudget(
            num_cores=self.num_cores,
            num_workers=workers,
            intra_op_threads=self.intra_op_threads or max(1, self.num_cores // workers),
            kernel_threads=self.kernel_threads or self.num_cores,
            prepare_threads=self.prepare_threads or max(2, self.num_cores),
        )

    def for_engine(self, options: EngineOptions) -> ThreadBudget:
        """The resolved budget of one model: its own choices first, the rest divided as for every other."""
        return replace(
            self,
            num_workers=options.num_workers or self.num_workers,
            intra_op_threads=options.intra_op_threads or self.intra_op_threads,
        ).resolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeProfile:
    """Shapes that TensorRT compiles a graph for, by input name: the smallest, those it is tuned for, the largest."""

    min: Mapping[str, tuple[int, ...]]
    opt: Mapping[str, tuple[int, ...]]
    max: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, low in self.min.items():
            opt, high = self.opt.get(name, ()), self.max.get(name, ())
            fits = len(low) == len(opt) == len(high) and all(
                0 <= a <= b <= c for a, b, c in zip(low, opt, high, strict=True)
            )
            shown = f"{list(low)}, {list(opt)}, {list(high)}"
            _require(
                fits,
                f"engine.tensorrt.profiles.{name}",
                shown,
                "min, opt and max of one length, each not below the last",
            )
        others = sorted({*self.opt, *self.max} - set(self.min))
        _require(not others, "engine.tensorrt.profiles", others, "every input stands in min, opt and max")
        _require(bool(self.min), "engine.tensorrt.profiles", {}, "at least one input a profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """How TensorRT compiles and runs a graph."""

    library: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto"  # auto: TensorRT, else TensorRT for RTX
    profiles: tuple[ShapeProfile, ...] = ()  # none: from the model's batch size, longest input, image size
    workspace_mb: int = 0  # device memory for tactics while building; 0: as much as there is
    tf32: bool = False  # fp32 products may be rounded to 10 bits of mantissa
    cuda_graphs: bool = False  # a run of a shape seen before is one launch; memory for each shape
    version_compatible: bool = False  # plans that later TensorRT 11 can load; they bring code of their own, which runs
    cache_mb: int = 8192  # plans beyond it leave, the longest unused first

    def __post_init__(self) -> None:
        _require(
            self.library in ("auto", "tensorrt", "tensorrt_rtx"),
            "engine.tensorrt.library",
            self.library,
            "one of auto, tensorrt, tensorrt_rtx",
        )
        for name, low in (("workspace_mb", 0), ("cache_mb", 1)):
            value = getattr(self, name)
            _require(low <= value <= 1 << 30, f"engine.tensorrt.{name}", value, f"from {low} to {1 << 30}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOptions:
    """How ONNX Runtime uses a GPU."""

    arena_mb: int = 0  # device memory that one session may take for weights and activations; 0: no limit
    cuda_graphs: bool = False  # runs of a shape seen before are replayed; one session a worker, each with its weights
    max_graphs: int = 32  # shapes a worker keeps a graph of; those beyond run as without
    tf32: bool = False  # fp32 products in TF32, of ten bits of mantissa; its precision is then said to be tf32
    conv_search: Literal["exhaustive", "heuristic", "default"] = "heuristic"  # how cuDNN finds its algorithm, per shape

    def __post_init__(self) -> None:
        _require(0 <= self.arena_mb <= 1 << 24, "engine.cuda.arena_mb", self.arena_mb, "from 0 (no limit) to 16777216")
        _require(1 <= self.max_graphs <= 4096, "engine.cuda.max_graphs", self.max_graphs, "from 1 to 4096")
        _require(
            self.conv_search in ("exhaustive", "heuristic", "default"),
            "engine.cuda.conv_search",
            self.conv_search,
            "one of exhaustive, heuristic, default",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where and how a model runs. Explicit choices are strict; only `auto` chooses."""

    device: str = "auto"  # auto | cpu | openvino | cuda[:n] | tensorrt[:n]
    precision: str = "auto"  # auto | fp32 | bf16 | fp16 | int8
    num_workers: int = 0  # 0: from the ThreadBudget
    intra_op_threads: int = 0  # 0: from the ThreadBudget
    cache: Path | None = None  # directory that keeps what was measured and built; None: it ends with the process
    cuda: CudaOptions = field(default_factory=CudaOptions)
    tensorrt: TensorRtOptions = field(default_factory=TensorRtOptions)

    def __post_init__(self) -> None:
        base = self.device.partition(":")[0]
        numbered = ("cuda", "tensorrt")
        _require(
            base in numbered or self.device in ("auto", "cpu", "openvino"),
            "engine.device",
            self.device,
            "one of auto, cpu, openvino, cuda[:n], tensorrt[:n]",
        )
        _require(
            self.precision in ("auto", "fp32", "bf16", "fp16", "int8", "fp8", "w8", "w4"),
            "engine.precision",
            self.precision,
            "one of auto, fp32, bf16, fp16, int8, fp8, w8, w4",
        )
        for name in ("num_workers", "intra_op_threads"):
            _require(0 <= getattr(self, name) <= 1024, f"engine.{name}", getattr(self, name), "from 0 (chosen) to 1024")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How waiting rows are grouped for one run of an engine."""

    max_batch_size: int = 16  # rows a run; 1: no batching
    max_queue_rows: int = 2048  # rows waiting; beyond it requests are refused at once
    max_delay_ms: float = 0.0  # how long a free worker waits for more rows; 0: takes what is there
    max_padding_ratio: float = 1.5  # longest bucketed length × rows ÷ sum of bucketed lengths in one batch
    length_bucket: int = 16  # lengths are padded up to a multiple of this, so that shapes recur
    inline: bool = False  # rows are computed on the thread that brings them, where no others wait; for runs of < 100 µs

    def __post_init__(self) -> None:
        _require(1 <= self.max_batch_size <= 65536, "batching.max_batch_size", self.max_batch_size, "from 1 to 65536")
        _require(
            1 <= self.max_queue_rows <= 1_000_000, "batching.max_queue_rows", self.max_queue_rows, "from 1 to 1000000"
        )
        _require(0 <= self.max_delay_ms <= 1000, "batching.max_delay_ms", self.max_delay_ms, "from 0 to 1000")
        _require(self.max_padding_ratio >= 1, "batching.max_padding_ratio", self.max_padding_ratio, "at least 1")
        _require(1 <= self.length_bucket <= 4096, "batching.length_bucket", self.length_bucket, "from 1 to 4096")
        wanted = "false where batching.max_delay_ms is more than 0: who is answered at once waits for no others"
        _require(not (self.inline and self.max_delay_ms), "batching.inline", self.inline, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPolicy:
    """How generations share a decoder."""

    max_slots: int = 16  # sequences that advance together
    max_length: int = 0  # tokens of one sequence, prompt and new ones; 0: the model's context, at most 4096
    max_waiting: int = 512  # sequences waiting for a slot; beyond it requests are refused at once
    prefill_chunk: int = 64  # prompt tokens computed between two decode steps while others are generating
    prefix_cache_mb: int = 256  # memory for keys and values of prompts seen before; 0: none
    default_max_tokens: int = 256  # new tokens where the request names none
    max_chat_bytes: int = 4_194_304  # a conversation after its template

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_slots", 1, 1024),
            ("max_length", 0, 1_048_576),
            ("max_waiting", 1, 1_000_000),
            ("prefill_chunk", 1, 65_536),
            ("prefix_cache_mb", 0, 1_048_576),
            ("default_max_tokens", 1, 1_048_576),
            ("max_chat_bytes", 1, 1_073_741_824),
        ):
            value = getattr(self, name)
            _require(low <= value <= high, f"decoder.{name}", value, f"from {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """What one request may ask for. A request over a limit is INVALID_INPUT naming field, value and limit."""

    max_inputs: int = 1024  # inputs a message
    max_text_bytes: int = 1_048_576  # UTF-8 bytes of one text
    max_image_bytes: int = 16_777_216  # encoded
    max_image_pixels: int = 33_554_432  # width × height, read from the header before decoding
    max_features: int = 4096  # columns a row
    max_top_k: int = 65_536
    max_similarity_cells: int = 4_194_304  # rows × columns of one similarity matrix

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            _require(getattr(self, name) >= 1, f"limits.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Server certificate and key (PEM), and the authorities whose client certificates are required (mutual TLS)."""

    certificate: Path
    private_key: Path
    client_authorities: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """The gRPC listeners and what they bear."""

    listen: tuple[str, ...] = ("127.0.0.1:50051",)  # host:port or unix:PATH; port 0: a free one
    transport: TransportName = "auto"
    tls: TlsOptions | None = None
    max_message_bytes: int = 67_108_864  # a request or response message
    max_concurrent_streams: int = 100  # RPCs in flight a connection; bounds rapid reset
    max_concurrent_calls: int = 4096  # RPCs in flight in all; beyond it RESOURCE_EXHAUSTED
    max_waiting_requests: int = 2048  # requests waiting to be decoded and prepared
    stream_high_water: int = 32  # queued stream messages at which `send` says stop
    stream_hard_limit: int = 1024  # queued stream messages at which the call is ended
    stream_stall_s: float = 60.0  # how long the reader of a generated text may read nothing
    keepalive_time_ms: int = 60_000
    max_connection_age_ms: int = 0  # 0: connections live as long as the client wants
    drain_grace_s: float = 30.0  # how long running requests may take after a stop
    reflection: bool = True

    def __post_init__(self) -> None:
        _require(bool(self.listen), "transport.listen", self.listen, "at least one address")
        _require(
            self.transport in ("auto", "direct", "aio"),
            "transport.transport",
            self.transport,
            "one of auto, direct, aio",
        )
        for name in (
            "max_message_bytes",
            "max_concurrent_streams",
            "max_concurrent_calls",
            "max_waiting_requests",
            "stream_high_water",
            "keepalive_time_ms",
        ):
            _require(
                1 <= getattr(self, name) <= 2**31 - 1, f"transport.{name}", getattr(self, name), "from 1 to 2147483647"
            )
        _require(
            self.stream_hard_limit > self.stream_high_water,
            "transport.stream_hard_limit",
            self.stream_hard_limit,
            f"more than stream_high_water ({self.stream_high_water})",
        )
        _require(self.stream_stall_s > 0, "transport.stream_stall_s", self.stream_stall_s, "more than 0")
        _require(self.drain_grace_s >= 0, "transport.drain_grace_s", self.drain_grace_s, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOptions:
    """The admin listener: Prometheus metrics and liveness over HTTP. None: off."""

    listen: str | None = "127.0.0.1:9090"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogOptions:
    """Item catalogs: the directory that keeps them, which one process uses at a time. None: no catalogs."""

    directory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleOptions:
    """How versions come, stay and go."""

    versions: str = (
        "all"  # all | latest | latest:N: which versions found are loaded, where a model's own file says nothing
    )
    poll_s: float = 0.0  # how often the repository's directory is looked at for changes; 0: only when asked
    state_file: Path | None = None  # what operators decided is kept here; None: it ends with the process
    memory_budget_mb: int = 0  # for all loaded models; 0: no limit
    idle_unload_s: float = 0.0  # a version that nobody asked for so long gives its memory back; 0: never

    def __post_init__(self) -> None:
        kind, colon, count = self.versions.partition(":")
        known = self.versions in ("all", "latest") or (
            kind == "latest" and colon and count.isascii() and count.isdigit() and 1 <= int(count) <= 1000
        )
        _require(bool(known), "lifecycle.versions", self.versions, "one of all, latest, latest:N (N from 1 to 1000)")
        _require(0 <= self.poll_s <= 86_400, "lifecycle.poll_s", self.poll_s, "from 0 (never) to 86400")
        _require(
            0 <= self.memory_budget_mb <= 1 << 30,
            "lifecycle.memory_budget_mb",
            self.memory_budget_mb,
            "at least 0 (none)",
        )
        _require(self.idle_unload_s >= 0, "lifecycle.idle_unload_s", self.idle_unload_s, "at least 0 (never)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementOptions:
    """Where versions are loaded, labelled and split over gRPC: a listener of its own, without TLS, so that loopback and
    UNIX sockets alone are sensible. None: nowhere."""

    listen: str | None = None  # host:port or unix:PATH
    on_data_port: bool = False  # management RPCs are answered by the data listeners too


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """OpenTelemetry traces. Off unless an endpoint is named."""

    endpoint: str | None = None  # of an OTLP/HTTP collector, http://host:4318
    sample_ratio: float = 1.0  # of traces that begin here; a caller's own decision stands
    service_name: str = "headrace"

    def __post_init__(self) -> None:
        _require(0 <= self.sample_ratio <= 1, "tracing.sample_ratio", self.sample_ratio, "from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything a server is started with."""

    repository: Path
    threads: ThreadBudget = field(default_factory=ThreadBudget)
    engine: EngineOptions = field(default_factory=EngineOptions)
    batching: BatchPolicy = field(default_factory=BatchPolicy)
    decoder: DecoderPolicy = field(default_factory=DecoderPolicy)
    limits: InputLimits = field(default_factory=InputLimits)
    transport: TransportOptions | None = field(default_factory=TransportOptions)  # None: in-process calls alone
    admin: AdminOptions = field(default_factory=AdminOptions)
    catalogs: CatalogOptions = field(default_factory=CatalogOptions)
    lifecycle: LifecycleOptions = field(default_factory=LifecycleOptions)
    management: ManagementOptions = field(default_factory=ManagementOptions)
    tracing: TracingOptions = field(default_factory=TracingOptions)
    log_level: str = "info"
    log_format: Literal["json", "text"] = "json"
    log_slow_s: float = 0.0  # an RPC that asked a model and took so long is logged with where the time went; 0: none

    def __post_init__(self) -> None:
        _require(self.log_slow_s >= 0, "log_slow_s", self.log_slow_s, "at least 0 (none)")
