"""A `smartspec serve` without a model: the same ports, flags and signals, ready in a fraction of a second.

What it does follows from the target's name: `crash` fails to start, `crash-once` does so once.
Requests take `max_tokens` pieces of 5 ms each. Standard names, so that the front and the operator cannot tell.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import msgspec
from aiohttp import web

from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings, decode_settings

PIECE_SECONDS = 0.005


class FakeReplica:
    """State of the one fake model server."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.state = "ready"
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.settings = PolicySettings()
        if arguments.policy_file and Path(arguments.policy_file).exists():
            self.settings = decode_settings(Path(arguments.policy_file).read_bytes())

    async def ready(self, request: web.Request) -> web.Response:
        """200 while new requests are welcome."""
        return web.Response(status=200 if self.state == "ready" else 503)

    async def health(self, request: web.Request) -> web.Response:
        """Always 200."""
        return web.Response()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Stream pieces as the runtime streams tokens."""
        if self.state != "ready":
            return web.Response(status=503)
        body = await request.json()
        self.running += 1
        self.idle.clear()
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for index in range(body["max_tokens"]):
                await asyncio.sleep(PIECE_SECONDS)
                chunk = {"choices": [{"index": 0, "text": f"{index} ", "finish_reason": None}]}
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"], "total_tokens": 1}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
            return response
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def describe(self, request: web.Request) -> web.Response:
        """What it was started with, for tests to read."""
        names = ("SMARTSPEC_ADMIN_KEY", "HF_HOME", "HOME")
        told = {"arguments": vars(self.arguments), "environment": {name: os.environ.get(name) for name in names}}
        return web.json_response(told | {"pid": os.getpid()})

    def authorized(self, request: web.Request) -> None:
        """Refuse a wrong admin key."""
        if request.headers.get("Authorization") != f"Bearer {os.environ.get('SMARTSPEC_ADMIN_KEY')}":
            raise web.HTTPUnauthorized

    async def load(self, request: web.Request) -> web.Response:
        """A report that says how many requests run: eight are what it can bear."""
        self.authorized(request)
        report = LoadReport(
            model="fake",
            version="0",
            state="ready" if self.state == "ready" else "draining",
            generation=self.settings.generation,
            num_requests_running=self.running,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            max_queued_requests=8,
            kv_cache_tokens=4096,
        )
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")

    async def put_policy(self, request: web.Request) -> web.Response:
        """Take a policy."""
        self.authorized(request)
        self.settings = decode_settings(await request.read())
        return web.Response(body=msgspec.json.encode(self.settings), content_type="application/json")

    async def drain(self, request: web.Request) -> web.Response:
        """Begin to drain."""
        self.authorized(request)
        self.state = "draining"
        return web.json_response({"state": self.state})


async def serve(arguments: argparse.Namespace) -> None:
    """Serve both ports until SIGTERM, then finish what runs."""
    replica = FakeReplica(arguments)
    public, admin = web.Application(), web.Application()
    public.router.add_get("/describe", replica.describe)
    public.router.add_post("/v1/completions", replica.complete)
    admin.router.add_get("/load", replica.load)
    admin.router.add_put("/policy", replica.put_policy)
    admin.router.add_post("/drain", replica.drain)
    for app, port in ((public, arguments.port), (admin, arguments.admin_port)):
        app.router.add_get("/ready", replica.ready)
        app.router.add_get("/health", replica.health)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    replica.state = "draining"
    await asyncio.sleep(0.05)
    await replica.idle.wait()


def main() -> None:
    """Parse what the operator says; fail as the target's name demands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("target")
    for flag in ("--host", "--policy-file", "--admin-host", "--draft", "--served-name", "--api-key-file"):
        parser.add_argument(flag)
    for flag in ("--port", "--admin-port", "--threads"):
        parser.add_argument(flag, type=int)
    arguments, _ = parser.parse_known_args()
    crashed = Path(f"{arguments.target}.crashed")
    name = Path(arguments.target).name
    if name == "crash" or (name == "crash-once" and not crashed.exists()):
        if name == "crash-once":
            crashed.touch()
        sys.exit(f"error: no weights in {arguments.target}")
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
