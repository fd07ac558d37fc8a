"""The command line of `smartspec bench`."""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from smartspec.argument_types import key
from smartspec.config import ConfigError
from smartspec.loadgen.plan import Mode, Plan, closed, modes_of, paced, replayed
from smartspec.loadgen.prompts import texts
from smartspec.loadgen.recorded import read

KEY_VARIABLES = ("SMARTSPEC_API_KEY", "OPENAI_API_KEY")
DEFAULT_CLIENTS = 4
DEFAULT_TOKENS = 64


@dataclass(frozen=True)
class BenchOptions:
    """What to do with which server. *modes* is one without a field unless modes are compared."""

    base: URL
    plan: Plan
    modes: tuple[Mode, ...]
    rounds: int
    model: str | None
    chat: bool
    fields: Mapping[str, Any]
    api_key: str | None
    timeout_seconds: float
    json_file: Path | None
    picture_file: Path | None

    @property
    def compares(self) -> bool:
        """Whether the server is asked to speculate in particular ways."""
        return self.modes[0].field is not None


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to *parser*."""
    parser.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8000")
    group = parser.add_argument_group("load")
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--rate", type=_positive, metavar="R", help="requests a second, Poisson, whatever is answered")
    shape.add_argument(
        "--clients", type=_count, metavar="N",
        help=f"so many at once, each sending its next when answered ({DEFAULT_CLIENTS} if nothing else is said)",
    )  # fmt: skip
    shape.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="requests when a recorded trace has them: JSON Lines with arrival (seconds) or timestamp (milliseconds), "
        "prompt, input_length and output_length; Azure's CSV; or what `serve --trace` wrote",
    )  # fmt: skip
    group.add_argument("--speed", type=_positive, default=1.0, metavar="X", help="replay a trace X times as fast")
    group.add_argument("--requests", type=_count, metavar="N", help="at most so many; 64 if no time is given either")
    group.add_argument(
        "--minutes", type=_positive, metavar="M", help="send for so long, then wait for what is under way"
    )
    group.add_argument("--seed", type=int, default=0, help="of the arrivals")

    group = parser.add_argument_group("requests")
    group.add_argument("--model", help="id of the model; the first that the server lists if not given")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="texts, one a line, or .jsonl with a field prompt")
    group.add_argument("--chat", action="store_true", help="send prompts as messages to /v1/chat/completions")
    group.add_argument("--max-tokens", type=_count, default=DEFAULT_TOKENS, metavar="N", help="of an answer")
    group.add_argument("--temperature", type=float, default=0.0, help="of sampling")
    group.add_argument(
        "--ignore-eos", action="store_true",
        help="every answer has all its tokens (the server must know the field); always so with --compare",
    )  # fmt: skip
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="key to send; or in " + " or ".join(KEY_VARIABLES)
    )
    group.add_argument("--timeout", type=_positive, default=600.0, metavar="SECONDS", help="longest wait for an answer")

    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--compare", metavar="MODES",
        help="the same requests for each of these ways of speculating, in turns: off, auto, auto:N or fixed:N, such as "
        "off,fixed:4,auto (SmartSpec servers only); the first is what the others are held against",
    )  # fmt: skip
    group.add_argument("--rounds", type=_count, default=1, metavar="N", help="take all modes through it N times")

    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", dest="json_file", help="every request, and the sums")
    group.add_argument("--picture", type=Path, metavar="FILE", dest="picture_file", help="a picture (.png, .svg, .pdf)")


def bench_options(parsed: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> BenchOptions:
    """What was asked for, checked; raises ConfigError."""
    modes = (Mode("as it is"),) if parsed.compare is None else modes_of(parsed.compare)
    fields: dict[str, Any] = {"temperature": parsed.temperature}
    if parsed.ignore_eos or parsed.compare is not None:
        fields["ignore_eos"] = True
    for name in ("json_file", "picture_file"):
        file: Path | None = getattr(parsed, name)
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{name.removesuffix('_file')} {file}: there is no folder {file.parent}")
    return BenchOptions(
        base=_base(parsed.url),
        plan=_plan(parsed),
        modes=modes,
        rounds=parsed.rounds,
        model=parsed.model,
        chat=parsed.chat,
        fields=fields,
        api_key=key("api_key", parsed.api_key_file, next(filter(None, map(environment.get, KEY_VARIABLES)), None)),
        timeout_seconds=parsed.timeout,
        json_file=parsed.json_file,
        picture_file=parsed.picture_file,
    )


def _plan(parsed: argparse.Namespace) -> Plan:
    prompts = texts(parsed.prompts)
    seconds = None if parsed.minutes is None else 60 * parsed.minutes
    limits = {"requests": parsed.requests, "seconds": seconds, "tokens": parsed.max_tokens}
    if parsed.trace is not None:
        return replayed(read(parsed.trace), prompts, speed=parsed.speed, **limits)
    if parsed.rate is not None:
        return paced(prompts, rate=parsed.rate, seed=parsed.seed, **limits)
    return closed(prompts, clients=parsed.clients or DEFAULT_CLIENTS, **limits)


def _base(text: str) -> URL:
    """The server's root: people give it with and without `/v1`."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"url: {text!r} is not one ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"url: {text!r} must begin with http:// or https:// and name a host")
    return url.with_query(None).with_fragment(None).with_path(re.sub(r"/(v1/?)?$", "", url.path) + "/")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)
