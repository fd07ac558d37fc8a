"""What a runtime is started with: frozen, validated once, passed down whole."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PolicyName = Literal["request", "batch", "fixed", "off"]
Compile = Literal["auto", "on", "off"]
Verification = Literal["auto", "coupled", "rejection"]


class ConfigError(ValueError):
    """A setting is out of bounds; the message names the setting and what would be accepted."""


@dataclass(frozen=True)
class ModelConfig:
    """Which weights to serve, and how to hold them."""

    target: str
    draft: str | None = None
    revision: str | None = None
    draft_revision: str | None = None
    served_name: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    trust_remote_code: bool = False
    compile: Compile = "auto"
    seed: int = 0

    @property
    def name(self) -> str:
        """The model id clients use: the served name, else the last part of the target's path or hub id."""
        return self.served_name or Path(self.target).name


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds on one step and on the queue in front of it."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_queued_requests: int = 256
    max_queued_tokens: int = 262_144
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_queued_requests < 0:
            raise ConfigError(f"max_queued_requests must not be negative, got {self.max_queued_requests}")
        if self.max_queued_tokens < 1:
            raise ConfigError(f"max_queued_tokens must be at least 1, got {self.max_queued_tokens}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running request needs one token a step"
            )


@dataclass(frozen=True)
class SpeculationConfig:
    """How to speculate until a newer policy arrives over the admin port."""

    policy: PolicyName = "request"
    num_speculative_tokens: int = 8
    verification: Verification = "auto"
    prompt_lookup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.num_speculative_tokens <= 32:
            raise ConfigError(f"num_speculative_tokens must be from 0 to 32, got {self.num_speculative_tokens}")


@dataclass(frozen=True)
class ServerConfig:
    """Where to listen, for whom, and for how long."""

    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    api_key: str | None = field(default=None, repr=False)
    api_key_file: Path | None = None
    admin_key: str | None = field(default=None, repr=False)
    max_connection_age_seconds: float = 300.0
    lame_duck_seconds: float = 0.0
    drain_timeout_seconds: float = 300.0
    max_body_bytes: int = 4 * 1024 * 1024
    max_held_body_bytes: int = 64 * 1024 * 1024
    max_header_bytes: int = 8190
    max_headers: int = 100
    max_connections: int = 8192
    idle_timeout_seconds: float = 120.0
    head_timeout_seconds: float = 20.0
    body_timeout_seconds: float = 60.0
    send_timeout_seconds: float = 60.0
    request_timeout_seconds: float | None = None
    otlp_endpoint: str | None = None
    page: bool = False

    def __post_init__(self) -> None:
        if self.max_body_bytes < 1:
            raise ConfigError(f"max_body_size must be at least 1, got {self.max_body_bytes}")
        if self.max_connections < 1:
            raise ConfigError(f"max_connections must be at least 1, got {self.max_connections}")


@dataclass(frozen=True)
class TraceConfig:
    """Where to write down what the policy meets, if anywhere; two files of *max_bytes* at most."""

    file: Path | None = None
    max_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.max_bytes < 1024 * 1024:
            raise ConfigError(f"trace_size must be at least 1MiB, got {self.max_bytes}")


@dataclass(frozen=True)
class RuntimeConfig:
    """Everything `smartspec serve` was told."""

    model: ModelConfig
    scheduler: SchedulerConfig = SchedulerConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    server: ServerConfig = ServerConfig()
    trace: TraceConfig = TraceConfig()
    num_threads: int | None = None
