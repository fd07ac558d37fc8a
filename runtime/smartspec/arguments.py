"""The command line of `smartspec`: flags become a `RuntimeConfig`, and nothing else knows that there were flags."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from smartspec import __version__
from smartspec.argument_types import num_bytes, seconds
from smartspec.config import (
    Compile,
    ConfigError,
    ModelConfig,
    PolicyName,
    RuntimeConfig,
    SchedulerConfig,
    SpeculationConfig,
    TraceConfig,
    Verification,
)
from smartspec.loadgen.arguments import add_bench
from smartspec.policy.settings import PolicySettings, decode_settings
from smartspec.server_arguments import add_server, server_config

MAX_THREADS = 4096


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
    for name, add, text in (
        ("serve", _add_serve, "serve a model over an OpenAI-compatible HTTP endpoint"),
        ("replay", _add_replay, "take a recorded run (serve --trace) through other settings of the policy"),
        ("selftest", _add_selftest, "check and measure a model, and what speculation brings it, on this machine"),
        ("bench", add_bench, "load any OpenAI-compatible server and time its answers"),
    ):
        # No abbreviations: a flag to come must not change what one means.
        add(commands.add_parser(name, help=text, formatter_class=_Help, allow_abbrev=False))
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
    scheduler, speculation = SchedulerConfig(), SpeculationConfig()
    _add_model(serve)
    group = serve.add_argument_group("batching")
    group.add_argument("--max-num-seqs", type=int, default=scheduler.max_num_seqs, help="most sequences in a step")
    group.add_argument(
        "--max-num-batched-tokens", type=int, default=scheduler.max_num_batched_tokens, help="most tokens in a step"
    )
    group.add_argument(
        "--max-queued-requests", type=int, default=scheduler.max_queued_requests, help="more than this get a 429"
    )
    group.add_argument(
        "--max-queued-tokens", type=int, default=scheduler.max_queued_tokens, help="and so do more prompt tokens"
    )
    group.add_argument("--block-size", type=int, default=scheduler.block_size, help="tokens in a block of the KV cache")
    group.add_argument(
        "--no-prefix-caching", action="store_true", help="compute every prompt from its start, whoever asked before"
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--num-blocks", type=int, metavar="N", help="size of the KV cache in blocks")
    size.add_argument("--kv-cache-memory", type=num_bytes, metavar="BYTES", help="the same as a size, such as 512MiB")

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

    add_server(serve)
    group = serve.add_argument_group("trace")
    group.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="write one JSON line a step: what the policy was asked, chose, predicted and met; for `smartspec replay`",
    )  # fmt: skip
    group.add_argument(
        "--trace-size", type=num_bytes, default=TraceConfig().max_bytes, metavar="BYTES",
        help="when FILE has grown to this it becomes FILE.1, in place of the one before, and a new one begins",
    )  # fmt: skip


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("file", type=Path, metavar="FILE", help="what `serve --trace` has written")
    replay.add_argument("--policy", choices=get_args(PolicyName), help="in place of the recorded one")
    replay.add_argument("--num-speculative-tokens", type=int, metavar="K", help="most tokens, in place of the recorded")
    replay.add_argument("--tpot-target", type=seconds, metavar="SECONDS", help="bound of the time per output token")
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
            max_queued_tokens=arguments.max_queued_tokens,
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
        server=server_config(arguments, environment),
        trace=TraceConfig(arguments.trace, arguments.trace_size),
        num_threads=arguments.threads,
    )


def _model_config(arguments: argparse.Namespace) -> ModelConfig:
    for name in ("threads", "max_model_len", "num_blocks"):
        if (value := getattr(arguments, name, None)) is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if (arguments.threads or 1) > MAX_THREADS:
        raise ConfigError(f"threads must be at most {MAX_THREADS}, got {arguments.threads}")
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
