"""Clients' keys on real pods: a file that the kubelet mounts and keeps true to its Secret."""

import json
from collections.abc import Callable

import openai

from node_user import MODEL, NodeUser, eventually
from release import Release

FIRST, SECOND = "sesame-first", "sesame-second"


def test_a_rotated_key_is_taken_without_a_restart(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: Callable[[str, str], str]
) -> None:
    """Nobody is served without the key; another one in the Secret is asked for soon, by the same pod; and neither the
    pod's arguments nor its log show any."""
    user = NodeUser(kubectl, namespace)
    user.kubectl("create", "secret", "generic", "clients", f"--from-literal=key={FIRST}")
    user.apply(server={"apiKeySecretRef": {"name": "clients", "key": "key"}})
    user.wait_ready()
    (before,) = user.pods()
    url = service_url(namespace, user.name)

    def status(key: str) -> int:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            try:
                client.completions.create(model=MODEL, prompt="def", max_tokens=2)
            except openai.APIStatusError as error:
                return error.status_code
        return 200

    assert [status(key) for key in (SECOND, FIRST)] == [401, 200]
    user.kubectl("patch", "secret", "clients", "-p", json.dumps({"stringData": {"key": SECOND}}))
    eventually(lambda: status(SECOND) == 200, seconds=150, why=user.story)
    assert status(FIRST) == 401
    (after,) = user.pods()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "sesame" not in json.dumps(after) + user.kubectl("logs", after["metadata"]["name"])
