"""`smartspec serve` from start to end, as a process: failing to load, serving, draining, being killed."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve_process import serve_process
from smartspec.policy.recording import Loaded, Step, decode
from smartspec.policy.replay import replay
from tiny import write_pair


def test_missing_model_is_one_line(tmp_path: Path) -> None:
    """A target that does not exist ends the process with a line that names it, after the ports were open."""
    with serve_process(tmp_path / "no-such-model", environment={"HF_HUB_OFFLINE": "1"}) as server:
        status = server.wait(60)
    assert status in (1, 2)
    complaint = [line for line in server.log if line.startswith("smartspec: ")]
    assert len(complaint) == 1
    assert "no-such-model" in complaint[0]
    assert not any("Traceback" in line for line in server.log)


def test_signal_while_loading_ends_at_once(tmp_path: Path) -> None:
    """A FIFO stands for a model that takes for ever: nobody waits for it after SIGTERM."""
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    with serve_process(tmp_path / "model") as server:
        assert server.get("/health")[0] == 200
        assert server.get("/ready") == (503, '{"status":"unready","reason":"loading"}')
        assert server.get("/v1/models")[0] == 503
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 3


def stream_completion(url: str, max_tokens: int) -> list[str]:
    """The lines of a long stream, as they come, to its end."""
    body = json.dumps({"prompt": "hello", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body)
    with urllib.request.urlopen(request, timeout=60) as response:
        return [line.decode().strip() for line in response if line.strip()]


def test_sigterm_drains(tmp_path: Path) -> None:
    """What runs is finished, what comes is refused, and the process ends well; its trace is whole."""
    pair = write_pair(tmp_path)
    trace = tmp_path / "trace.jsonl"
    arguments = ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--trace", str(trace)]
    with serve_process(pair.target, *arguments) as server:
        server.wait_ready()
        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(stream_completion, server.url, 480)
            while '"num_requests_running":1' not in server.get_admin("/load")[1]:
                assert not streaming.done()
            server.send(signal.SIGTERM)
            assert server.wait() == 0
            *_, last, done = streaming.result()
    assert '"finish_reason":"length"' in last
    assert done == "data: [DONE]"
    assert not any("Traceback" in line for line in server.log)
    with trace.open("rb") as lines:
        events = list(decode(lines))
    assert sum(event.tokens_kept for event in events if isinstance(event, Step)) == 480
    assert any(isinstance(event, Loaded) for event in events)
    replayed = list(replay(events))
    assert len(replayed) > 50
    assert all(step.replayed == step.recorded for step in replayed)


def post_completion(url: str) -> tuple[int, str | None]:
    """The status of a short completion, and what its answer says of the connection."""
    request = urllib.request.Request(f"{url}/v1/completions", b'{"prompt": "hello", "max_tokens": 2}')
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers["Connection"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Connection"]


def test_lame_duck_serves_then_refuses_then_ends(tmp_path: Path) -> None:
    """After SIGTERM: unready at once but serving, so that nobody who has not heard yet is failed; then 503 while what
    runs is finished; then the end, with 0."""
    pair = write_pair(tmp_path, max_position_embeddings=4096)
    arguments = ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--lame-duck", "1"]
    with serve_process(pair.target, *arguments) as server:
        server.wait_ready()
        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(stream_completion, server.url, 1500)
            while '"num_requests_running":1' not in server.get_admin("/load")[1]:
                assert not streaming.done()
            server.send(signal.SIGTERM)
            while (ready := server.get("/ready"))[0] == 200:
                time.sleep(0.01)
            assert ready == (503, '{"status":"unready","reason":"lame-duck"}')
            assert post_completion(server.url) == (200, "close")
            while (refused := post_completion(server.url))[0] == 200:
                time.sleep(0.05)
            assert refused == (503, "close")
            assert server.get("/health")[0] == 200
            assert server.wait(60) == 0
            *_, last, done = streaming.result()
    assert '"finish_reason":"length"' in last
    assert done == "data: [DONE]"


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice means it."""
    pair = write_pair(tmp_path)
    arguments = ["--dtype", "float32", "--device", "cpu", "--threads", "1", "--lame-duck", "60"]
    with serve_process(pair.target, *arguments) as server:
        server.wait_ready()
        server.send(signal.SIGINT)
        while server.get("/ready")[0] == 200:
            time.sleep(0.01)
        server.send(signal.SIGINT)
        assert server.wait(5) == 128 + signal.SIGINT
