"""The flags of `smartspec serve` that concern the server: where it listens, for whom, and how much it puts up with."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from smartspec.argument_types import key, num_bytes, port, seconds, some_seconds
from smartspec.config import ServerConfig


def add_server(serve: argparse.ArgumentParser) -> None:
    """Add them to *serve*."""
    server = ServerConfig()
    group = serve.add_argument_group("server")
    group.add_argument("--served-name", help="the model id clients use; the last part of TARGET if not given")
    group.add_argument("--host", default=server.host, help="address of the public port")
    group.add_argument("--port", type=port, default=server.port, help="0: any free one")
    group.add_argument("--page", action="store_true", help="show the page at / of the public port too, to anybody")
    group.add_argument("--admin-host", default=server.admin_host, help="address of the admin port")
    group.add_argument("--admin-port", type=port, default=server.admin_port, help="0: any free one")
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="keys of which clients must send one, a line each: KEY or KEY NAME; read again when it changes; or one "
        "key in SMARTSPEC_API_KEY",
    )  # fmt: skip
    group.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="key of the admin port; or in SMARTSPEC_ADMIN_KEY"
    )
    group.add_argument(
        "--drain-timeout", type=seconds, default=server.drain_timeout_seconds, metavar="SECONDS",
        help="longest wait for running requests, after the lame-duck time",
    )  # fmt: skip
    group.add_argument(
        "--lame-duck", type=seconds, default=server.lame_duck_seconds, metavar="SECONDS",
        help="how long to serve on after SIGTERM, unready, before new requests are refused",
    )  # fmt: skip
    group.add_argument(
        "--otlp-endpoint", metavar="URL",
        help="send a trace span for each request to this OpenTelemetry collector, over OTLP/HTTP; needs the extra "
        "`tracing`",
    )  # fmt: skip
    _add_limits(serve, server)


def _add_limits(serve: argparse.ArgumentParser, server: ServerConfig) -> None:
    group = serve.add_argument_group("limits")
    group.add_argument(
        "--request-timeout", type=some_seconds, default=server.request_timeout_seconds, metavar="SECONDS",
        help="how long a request may take that names no timeout itself; without limit if not given",
    )  # fmt: skip
    group.add_argument(
        "--max-body-size", type=num_bytes, default=server.max_body_bytes, metavar="BYTES", help="larger ones get a 413"
    )
    group.add_argument(
        "--max-connections", type=int, default=server.max_connections, metavar="N", help="a port's, at once"
    )
    group.add_argument(
        "--max-connection-age", type=seconds, default=server.max_connection_age_seconds, metavar="SECONDS",
        help="after this, give or take a fifth, a connection is closed with its next answer",
    )  # fmt: skip
    group.add_argument(
        "--idle-timeout", type=some_seconds, default=server.idle_timeout_seconds, metavar="SECONDS",
        help="how long a connection may rest between two requests",
    )  # fmt: skip
    group.add_argument(
        "--head-timeout", type=some_seconds, default=server.head_timeout_seconds, metavar="SECONDS",
        help="how long a request's head may take to come, from its first byte on",
    )  # fmt: skip
    group.add_argument(
        "--body-timeout", type=some_seconds, default=server.body_timeout_seconds, metavar="SECONDS",
        help="how long its body may take after that",
    )  # fmt: skip
    group.add_argument(
        "--send-timeout", type=some_seconds, default=server.send_timeout_seconds, metavar="SECONDS",
        help="how long a client may read nothing of its answer when all buffers are full",
    )  # fmt: skip


def server_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServerConfig:
    """What they say, validated; raises ConfigError."""
    return ServerConfig(
        host=arguments.host,
        port=arguments.port,
        page=arguments.page,
        admin_host=arguments.admin_host,
        admin_port=arguments.admin_port,
        api_key=key("api_key", None, environment.get("SMARTSPEC_API_KEY")),
        api_key_file=arguments.api_key_file,
        admin_key=key("admin_key", arguments.admin_key_file, environment.get("SMARTSPEC_ADMIN_KEY")),
        lame_duck_seconds=arguments.lame_duck,
        drain_timeout_seconds=arguments.drain_timeout,
        max_body_bytes=arguments.max_body_size,
        max_held_body_bytes=16 * arguments.max_body_size,
        max_connections=arguments.max_connections,
        max_connection_age_seconds=arguments.max_connection_age,
        idle_timeout_seconds=arguments.idle_timeout,
        head_timeout_seconds=arguments.head_timeout,
        body_timeout_seconds=arguments.body_timeout,
        send_timeout_seconds=arguments.send_timeout,
        request_timeout_seconds=arguments.request_timeout,
        otlp_endpoint=arguments.otlp_endpoint,
    )
