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
  server: {{apiKeySecretRef: {{name: keys, key: clients}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
stringData: {{clients: {key}}}
"""


def is_alive(process_id: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{process_id}").exists()


async def test_a_file_serves_a_model_pair_with_the_operators_policy(tmp_path: Path) -> None:
    """Text comes through the front, speculated; the replica runs the policy that the operator decided; all ends.

    Clients need a key, and another one as soon as its Secret says so: the same replica reads it.
    """
    pair = write_pair(tmp_path)
    file, status = tmp_path / "tiny.yaml", tmp_path / "status.json"
    target, draft = pair.target.relative_to(tmp_path), pair.draft.relative_to(tmp_path)
    file.write_text(TEXT.format(target=target, draft=draft, key="first"))
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
        async with ClientSession(state()["url"], headers={"Authorization": "Bearer second"}) as session:
            names = [pod["name"] for pod in state()["pods"]]
            async with session.get("/v1/models") as answer:
                assert answer.status == 401
            file.write_text(TEXT.format(target=target, draft=draft, key="second"))
            async with asyncio.timeout(10):
                while answer.status == 401:
                    async with session.get("/v1/models") as answer:
                        await asyncio.sleep(0.1)
            assert [pod["name"] for pod in state()["pods"]] == names
            texts = []
            # What goodput chooses for so small a pair is its own affair, so one request says itself that it drafts.
            for wish in ({"mode": "auto"}, {"mode": "off"}, {"mode": "fixed", "max_tokens": 3}):
                async with session.post("/v1/completions", json=body | {"speculation": wish}) as answer:
                    told = await answer.json()
                assert told["usage"]["completion_tokens"] == 24
                texts.append(told["choices"][0]["text"])
            assert texts[0] == texts[1] == texts[2]
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
