"""The command line of `smartspec`: flags become a `RuntimeConfig`, and nothing else knows that there were flags."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from smartspec import __version__
from smartspec.config import (
    Compile,
    ConfigError,
    ModelConfig,
    PolicyName,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
    SpeculationConfig,
    TraceConfig,
    Verification,
)
from smartspec.policy.settings import PolicySettings, decode_settings

BYTE_UNITS: Mapping[str, int] = {
    "": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values; None and False only mean that the flag was not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; argparse ends the process with status 2 when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="smartspec",
        description="An LLM server that decides, per request and per step, how much to speculate.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"smartspec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(
        commands.add_parser(
            "serve",
            help="serve a model over an OpenAI-compatible HTTP endpoint",
            formatter_class=_Help,
            allow_abbrev=False,  # a flag to come must not change what an abbreviation means
        )
    )
    _add_replay(
        commands.add_parser(
            "replay",
            help="take a recorded run (serve --trace) through other settings of the policy",
            formatter_class=_Help,
            allow_abbrev=False,
        )
    )
    _add_selftest(
        commands.add_parser(
            "selftest",
            help="check and measure a model, and what speculation brings it, on this machine",
            formatter_class=_Help,
            allow_abbrev=False,
        )
    )
    return parser.parse_args(argv)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """What says which models, and how to hold them; shared by the commands that load any."""
    model = ModelConfig("")
    group = parser.add_argument_group("model")
    group.add_argument("target", metavar="TARGET", help="folder or hub id of the model")
    group.add_argument("--draft", help="folder or hub id of a small model with the same tokenizer that drafts")
    group.add_argument(
        "--dtype", default=model.dtype, choices=["auto", "float32", "bfloat16", "float16"], help="of weights and cache"
    )
    group.add_argument("--device", default=model.device, help="auto, cpu, cuda or cuda:N")
    group.add_argument("--revision", help="branch, tag or commit of TARGET on the hub")
    group.add_argument("--draft-revision", help="the same for the draft")
    group.add_argument("--max-model-len", type=int, help="longest prompt plus answer in tokens; the model's own limit")
    group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    group.add_argument(
        "--compile", default=model.compile, choices=get_args(Compile),
        help="compile the models' forward for the CPU before serving, which takes half a minute the first time; auto: "
        "where there is a C++ compiler and it is faster",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=model.seed, help="seed of the noise of requests that name none")
    group.add_argument("--threads", type=int, help="CPU threads; what affinity and cgroup quota allow if not given")


def _add_serve(serve: argparse.ArgumentParser) -> None:
    scheduler, speculation, server = SchedulerConfig(), SpeculationConfig(), ServerConfig()
    _add_model(serve)
    group = serve.add_argument_group("batching")
    group.add_argument("--max-num-seqs", type=int, default=scheduler.max_num_seqs, help="most sequences in a step")
    group.add_argument(
        "--max-num-batched-tokens", type=int, default=scheduler.max_num_batched_tokens, help="most tokens in a step"
    )
    group.add_argument(
        "--max-queued-requests", type=int, default=scheduler.max_queued_requests, help="more than this get a 429"
    )
    group.add_argument("--block-size", type=int, default=scheduler.block_size, help="tokens in a block of the KV cache")
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="compute every prompt from its start, whoever asked before"
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--num-blocks", type=int, metavar="N", help="size of the KV cache in blocks")
    size.add_argument("--kv-cache-memory", type=_bytes, metavar="BYTES", help="the same as a size, such as 512MiB")

    group = serve.add_argument_group("speculation")
    group.add_argument(
        "--policy", default=speculation.policy, choices=get_args(PolicyName), help="how to choose how much to speculate"
    )
    group.add_argument(
        "--num-speculative-tokens", type=int, default=speculation.num_speculative_tokens, metavar="K",
        help="most tokens speculated per sequence and step; with the policy fixed, exactly as many",
    )  # fmt: skip
    group.add_argument(
        "--verification",
        default=speculation.verification,
        choices=get_args(Verification),
        help="auto: coupled for requests with a seed, so that it alone decides the text; rejection for others",
    )
    group.add_argument("--no-prompt-lookup", action="store_true", help="do not copy continuations from the context")
    group.add_argument(
        "--policy-file", type=Path, metavar="FILE",
        help="policy to start with, as PUT /policy takes it; if FILE does not exist, the flags are the policy",
    )  # fmt: skip

    group = serve.add_argument_group("server")
    group.add_argument("--served-name", help="the model id clients use; the last part of TARGET if not given")
    group.add_argument("--host", default=server.host, help="address of the public port")
    group.add_argument("--port", type=_port, default=server.port, help="0: any free one")
    group.add_argument("--admin-host", default=server.admin_host, help="address of the admin port")
    group.add_argument("--admin-port", type=_port, default=server.admin_port, help="0: any free one")
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="key clients must send; or in SMARTSPEC_API_KEY"
    )
    group.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="key of the admin port; or in SMARTSPEC_ADMIN_KEY"
    )
    group.add_argument(
        "--drain-timeout", type=_seconds, default=server.drain_timeout_seconds, metavar="SECONDS",
        help="longest wait for running requests, after the lame-duck time",
    )  # fmt: skip
    group.add_argument(
        "--lame-duck", type=_seconds, default=server.lame_duck_seconds, metavar="SECONDS",
        help="how long to serve on after SIGTERM, unready, before new requests are refused",
    )  # fmt: skip
    group.add_argument(
        "--max-connection-age", type=_seconds, default=server.max_connection_age_seconds, metavar="SECONDS",
        help="after this a connection is closed with its next answer",
    )  # fmt: skip

    group = serve.add_argument_group("trace")
    group.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="write one JSON line a step: what the policy was asked, chose, predicted and met; for `smartspec replay`",
    )  # fmt: skip
    group.add_argument(
        "--trace-size", type=_bytes, default=TraceConfig().max_bytes, metavar="BYTES",
        help="when FILE has grown to this it becomes FILE.1, in place of the one before, and a new one begins",
    )  # fmt: skip


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("file", type=Path, metavar="FILE", help="what `serve --trace` has written")
    replay.add_argument("--policy", choices=get_args(PolicyName), help="in place of the recorded one")
    replay.add_argument("--num-speculative-tokens", type=int, metavar="K", help="most tokens, in place of the recorded")
    replay.add_argument("--tpot-target", type=_seconds, metavar="SECONDS", help="bound of the time per output token")
    replay.add_argument("--json", action="store_true", help="print JSON in place of a table")


def replay_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that `replay` was told to change, by their names in `PolicySettings`; raises ConfigError."""
    depth, target = arguments.num_speculative_tokens, arguments.tpot_target
    if depth is not None:
        SpeculationConfig(num_speculative_tokens=depth)  # its bounds are the policy's
    if target is not None and target <= 0:
        raise ConfigError(f"tpot_target must be above 0, got {target:g}")
    changes = {"policy": arguments.policy, "max_speculative_tokens": depth, "tpot_target_seconds": target}
    return {name: value for name, value in changes.items() if value is not None}


def _add_selftest(selftest: argparse.ArgumentParser) -> None:
    _add_model(selftest)
    speculation = SpeculationConfig()
    group = selftest.add_argument_group("test")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="texts to try it on, one a line, in place of ours")
    group.add_argument(
        "--num-speculative-tokens", type=int, default=speculation.num_speculative_tokens, metavar="K",
        help="most tokens that the policy may choose",
    )  # fmt: skip
    group.add_argument("--no-prompt-lookup", action="store_true", help="leave prompt lookup out")
    group.add_argument("--quick", action="store_true", help="fewer texts, draws and batches: some seconds, for a look")
    group.add_argument("--json", action="store_true", help="print JSON in place of a table")


def selftest_config(arguments: argparse.Namespace) -> RuntimeConfig:
    """What `selftest` was told, validated; raises ConfigError."""
    return RuntimeConfig(
        model=_model_config(arguments),
        speculation=SpeculationConfig(
            num_speculative_tokens=arguments.num_speculative_tokens, prompt_lookup=not arguments.no_prompt_lookup
        ),
        num_threads=arguments.threads,
    )


def runtime_config(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> RuntimeConfig:
    """What `serve` was told, validated; raises ConfigError."""
    return RuntimeConfig(
        model=_model_config(arguments),
        scheduler=SchedulerConfig(
            max_num_seqs=arguments.max_num_seqs,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            max_queued_requests=arguments.max_queued_requests,
            block_size=arguments.block_size,
            kv_cache_memory_bytes=arguments.kv_cache_memory,
            num_blocks=arguments.num_blocks,
            prefix_caching=not arguments.no_prefix_caching,
        ),
        speculation=SpeculationConfig(
            policy=arguments.policy,
            num_speculative_tokens=arguments.num_speculative_tokens,
            verification=arguments.verification,
            prompt_lookup=not arguments.no_prompt_lookup,
        ),
        server=ServerConfig(
            host=arguments.host,
            port=arguments.port,
            admin_host=arguments.admin_host,
            admin_port=arguments.admin_port,
            api_key=_key("api_key", arguments.api_key_file, environment.get("SMARTSPEC_API_KEY")),
            admin_key=_key("admin_key", arguments.admin_key_file, environment.get("SMARTSPEC_ADMIN_KEY")),
            max_connection_age_seconds=arguments.max_connection_age,
            lame_duck_seconds=arguments.lame_duck,
            drain_timeout_seconds=arguments.drain_timeout,
        ),
        trace=TraceConfig(arguments.trace, arguments.trace_size),
        num_threads=arguments.threads,
    )


def _model_config(arguments: argparse.Namespace) -> ModelConfig:
    for name in ("threads", "max_model_len", "num_blocks"):
        if (value := getattr(arguments, name, None)) is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    return ModelConfig(
        target=arguments.target,
        draft=arguments.draft,
        revision=arguments.revision,
        draft_revision=arguments.draft_revision,
        served_name=getattr(arguments, "served_name", None),
        dtype=arguments.dtype,
        device=arguments.device,
        max_model_len=arguments.max_model_len,
        trust_remote_code=arguments.trust_remote_code,
        compile=arguments.compile,
        seed=arguments.seed,
    )


def initial_settings(config: RuntimeConfig, policy_file: Path | None) -> PolicySettings:
    """The policy to start with: the file's if there is one, else what the flags say; raises ConfigError."""
    flags = config.speculation
    if policy_file is None or not policy_file.exists():
        return PolicySettings(policy=flags.policy, max_speculative_tokens=flags.num_speculative_tokens)
    try:
        return decode_settings(policy_file.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy_file {policy_file}: {error}") from None


def _key(name: str, file: Path | None, variable: str | None) -> str | None:
    """A key from *file*, else from the environment; an empty one is a mistake, not an open door."""
    try:
        key = variable if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_file {file}: {error}") from None
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"{name} must be printable ASCII without spaces, and not empty")
    return key


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.upper())
    if match is None or match[2] not in BYTE_UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or such as 512MiB or 1GiB")
    return int(float(match[1]) * BYTE_UNITS[match[2]])


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return seconds
