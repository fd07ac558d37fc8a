"""Servers take turns, and none outlives the benchmark."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from smartspec_bench.servers import Launch, StartError, fleet

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def _launch(name: str, code: str = SERVER) -> Launch:
    return Launch(name, (sys.executable, "-c", code, "{port}"), "ready")


def _state(pid: int) -> str:
    """One letter, as in proc(5); T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_one_awake_at_a_time(tmp_path: Path) -> None:
    """After the start all rest; waking one puts the others to rest; at the end all are gone."""
    with fleet(tmp_path) as servers:
        await servers.start([_launch("a"), _launch("b")])
        pids = {name: server.process.pid for name, server in servers.servers.items()}
        assert [_state(pid) for pid in pids.values()] == ["T", "T"]
        for awake, asleep in (("a", "b"), ("b", "a")):
            await servers.wake(awake).wait_ready()
            assert _state(pids[awake]) != "T"
            assert _state(pids[asleep]) == "T"
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_terminated(tmp_path: Path) -> None:
    """Asked to terminate, the benchmark ends stopped servers before itself, and leaves the signal as it was."""
    before = signal.getsignal(signal.SIGTERM)
    pids = []

    async def benchmark() -> None:
        with fleet(tmp_path) as servers:
            await servers.start([_launch("a")])
            pids.append(servers.servers["a"].process.pid)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        await benchmark()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_does_not_start(tmp_path: Path) -> None:
    """A server that ends by itself is reported with the end of its log."""
    with fleet(tmp_path) as servers:
        with pytest.raises(ExceptionGroup) as caught:
            await servers.start([_launch("a", "raise SystemExit('no such model')")])
    assert isinstance(caught.value.exceptions[0], StartError)
    assert "no such model" in str(caught.value.exceptions[0])
