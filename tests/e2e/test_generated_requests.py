"""Requests that nobody would write, made up from the server's own OpenAPI document: each gets an answer, none a 5xx."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from figures import publish
from serve_process import serve_process
from tiny import write_pair

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def schemathesis(url: str, examples: int, seed: int, folder: Path) -> str:
    """What `schemathesis run` says of the server at *url*; fails when it found something."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", str(examples), "--seed", str(seed),
        "--request-timeout", "20", "--workers", "2", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


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
    with serve_process(pair.target, *flags) as server:
        server.wait_ready()
        said = schemathesis(server.url, examples, num_requests, tmp_path)
        load = json.loads(server.get_admin("/load")[1])
        assert server.get("/ready")[0] == 200
        assert not any("Traceback" in line or "internal_error" in line for line in server.log)
    found = re.search(r"(\d+) generated", said)
    assert found is not None, said
    publish("generated_requests", requests=int(found[1]), seconds=time.monotonic() - began)
    assert int(found[1]) >= num_requests
    assert (load["num_requests_running"], load["num_requests_waiting"], load["kv_cache_usage"]) == (0, 0, 0.0)
