"""Requests that nobody would write, made up from the server's own OpenAPI document: each gets an answer, none a 5xx."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from figures import measured
from serve_process import serve_process
from tiny import write_pair

MOST_SECONDS = 1500
"""What is not done by then hangs."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def schemathesis(url: str, examples: int, seed: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `schemathesis run` says of the server at *url*."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", str(examples), "--seed", str(seed),
        "--request-timeout", "20", "--workers", "2", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)


@pytest.mark.parametrize(
    ("num_requests", "examples"),
    [pytest.param(1_000, 20, id="short"), pytest.param(10_000, 2200, id="long", marks=pytest.mark.slow)],
)
def test_no_request_breaks_the_server(num_requests: int, examples: int, tmp_path: Path) -> None:
    """Valid, nearly valid and wild bodies for every endpoint: answered in time, as the document says, and the server
    is as it was."""
    pair = write_pair(tmp_path)
    flags = ("--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1",
             "--max-model-len", "64", "--num-blocks", "64")  # fmt: skip
    began = time.monotonic()
    with measured("generated_requests") as figures, serve_process(pair.target, *flags) as server:
        server.wait_ready()
        done = schemathesis(server.url, examples, num_requests, tmp_path)
        found = re.search(r"(\d+) generated", done.stdout)
        load = json.loads(server.get_admin("/load")[1])
        held = {name: load[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage")}
        figures |= {"requests": int(found[1]) if found else 0, "seconds": time.monotonic() - began, **held}
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert figures["requests"] >= num_requests, done.stdout
        assert server.get("/ready")[0] == 200
        assert not any("Traceback" in line or "internal_error" in line for line in server.log)
        assert set(held.values()) == {0}
