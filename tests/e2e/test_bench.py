"""`smartspec bench` against `smartspec serve`: what both count is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from serve_process import serve_process
from tiny import write_pair


def test_modes_of_a_real_server(tmp_path: Path) -> None:
    """Off proposes nothing, fixed:4 up to four a step, and every answer has all its tokens in each."""
    pair = write_pair(tmp_path)
    arguments = ["--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    with serve_process(pair.target, *arguments) as server:
        server.wait_ready()
        command = [sys.executable, "-m", "smartspec", "bench", server.url, "--compare", "off,fixed:4,auto"]
        command += ["--requests", "6", "--clients", "3", "--max-tokens", "24", "--json", str(tmp_path / "b.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    modes = {mode["mode"]: mode for mode in json.loads((tmp_path / "b.json").read_text())["modes"]}
    assert {name: (mode["answered"], mode["tokens"]) for name, mode in modes.items()} == dict.fromkeys(
        ("off", "fixed:4", "auto"), (6, 6 * 24)
    )
    assert modes["off"]["speculation"]["drafts"] == 0
    fixed = modes["fixed:4"]["speculation"]
    assert 0 < fixed["accepted_tokens"] <= fixed["draft_tokens"] <= 4 * fixed["drafts"]
    assert 1 < fixed["mean_acceptance_length"] <= 5
    # A step of one request brings its accepted tokens and one more: that is how 24 tokens came about.
    assert fixed["drafts"] + fixed["accepted_tokens"] <= 6 * 24
