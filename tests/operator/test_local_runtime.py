"""`smartspec-operator local` with the real runtime: a file, two tiny models, and a client."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from tiny import write_pair
from waiting import until

TEXT = """\
apiVersion: smartspec.io/v1alpha1
kind: SmartSpec
metadata: {{name: tiny}}
spec:
  model: {{source: {target}, servedName: tiny, dtype: float32}}
  speculation: {{method: DraftModel, draft: {{source: {draft}}}}}
  autoscaling: {{maxReplicas: 4}}
"""


def is_alive(process_id: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{process_id}").exists()


async def test_a_file_serves_a_model_pair_with_the_operators_policy(tmp_path: Path) -> None:
    """Text comes through the front, speculated; the replica runs the policy that the operator decided; all ends."""
    pair = write_pair(tmp_path)
    file, status = tmp_path / "tiny.yaml", tmp_path / "status.json"
    file.write_text(TEXT.format(target=pair.target.relative_to(tmp_path), draft=pair.draft.relative_to(tmp_path)))
    flags = ["--port", "0", "--tick", "0.2", "--status-file", str(status), "--folder", str(tmp_path / "local")]
    command = [sys.executable, "-m", "smartspec_operator", "local", str(file), *flags]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, env=environment)

    def state() -> dict[str, Any]:
        return json.loads(status.read_text()) if status.exists() else {"pods": [], "status": {}}

    def ready() -> bool:
        assert process.returncode is None
        return any(pod["ready"] for pod in state()["pods"])

    try:
        await until(ready, seconds=90)
        body = {"model": "tiny", "prompt": "def f(x):\n", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        async with ClientSession(state()["url"]) as session:
            texts = []
            for mode in ("auto", "off"):
                async with session.post("/v1/completions", json=body | {"speculation": {"mode": mode}}) as answer:
                    told = await answer.json()
                assert told["usage"]["completion_tokens"] == 24
                texts.append(told["choices"][0]["text"])
            assert texts[0] == texts[1]
            async with session.get("/metrics") as answer:
                exposition = await answer.text()
        assert 'smartspec_draft_tokens_total{model_name="tiny",proposer="draft"}' in exposition
        await until(lambda: state()["status"].get("policy", {}).get("appliedReplicas") == 1)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        status_code = await asyncio.wait_for(process.wait(), 30)
    assert status_code == 0
    assert not [pod for pod in state()["pods"] if is_alive(pod["process_id"])]
