"""From nothing to tokens: the chart, the quickstart, text from its Service, helm's own test, and all of it removed."""

import json
from collections.abc import Callable

import openai
import pytest

from charts import NAMESPACE, ROOT
from node_user import MODEL, NodeUser, eventually
from release import Release

QUICKSTART = ROOT / "examples/quickstart.yaml"


def text_from(url: str) -> str:
    """What a client gets for a prompt."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.completions.create(model=MODEL, prompt="def parse(self, text):", max_tokens=24, temperature=0)
    return answer.choices[0].text


def test_the_quickstart_answers(
    release: Release, kubectl: Callable[..., str], namespace: str, service_url: Callable[[str, str], str]
) -> None:
    """`kubectl apply` of the example as it is, Ready, and text from the Service by the `openai` client."""
    user = NodeUser(kubectl, namespace, "quickstart")
    user.kubectl("apply", "-f", str(QUICKSTART))
    user.wait_ready()
    text = text_from(service_url(namespace, "quickstart"))
    print(f"\nthe quickstart answered {text!r}")
    assert len(text.split()) >= 3
    shown = user.kubectl("get", "smartspecs", "--no-headers").split()
    assert shown[:5] == ["quickstart", "/models/stdlib-target", "Auto", "True", "1"]
    described = user.kubectl("describe", "smartspec", "quickstart")
    assert {"Created", "Available"} & set(described.split()), described


def test_live_pods_meet_the_restricted_profile(release: Release, kubectl: Callable[..., str], namespace: str) -> None:
    """As they run, not only as they were rendered: the operator's and a replica's."""
    user = NodeUser(kubectl, namespace)
    user.apply()
    user.wait_ready()
    operators = json.loads(kubectl("--namespace", NAMESPACE, "get", "pods", "--output=json"))["items"]
    pods = [*user.pods(), *(pod for pod in operators if pod["status"]["phase"] == "Running")]
    assert len(pods) >= 2
    for pod in pods:
        spec = pod["spec"]
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in volume for volume in spec["volumes"])
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True


def test_helm_test_passes(release: Release) -> None:
    """`helm test` makes a SmartSpec, prompts it, and removes it."""
    done = release.helm("test", "smartspec", "--timeout", "300s", "--logs")
    assert "answered" in done.stdout
    assert "Phase:          Succeeded" in done.stdout


@pytest.mark.parametrize("first", ["smartspecs", "release"])
def test_either_order_of_removal_leaves_nothing(
    release: Release, kubectl: Callable[..., str], namespace: str, first: str
) -> None:
    """Pods included: nothing waits for an operator that is gone, and nothing is left behind."""
    user = NodeUser(kubectl, namespace)
    user.apply()
    user.wait_ready()
    steps = [
        lambda: user.kubectl("delete", "smartspec", user.name, "--timeout=60s"),
        release.uninstall,
    ]
    for step in steps if first == "smartspecs" else reversed(steps):
        step()
    left = "deployments,replicasets,pods,services,configmaps,secrets,smartspecs"
    selector = f"--selector=app.kubernetes.io/instance={user.name}"
    eventually(
        lambda: not user.kubectl("get", left, selector, "--output=name", "--ignore-not-found"),
        seconds=90,
        why=lambda: user.kubectl("get", left, selector),
    )
    if not release.is_installed:
        release.install()
