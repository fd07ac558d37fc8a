"""The images of the Dockerfile as pods: under the restricted profile, by Service and DNS, until told to stop."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodes import DRAFT, OPERATOR_IMAGE, RUNTIME_IMAGE, SCRIPT, TARGET
from release import Release

Kubectl = Callable[..., str]
Manifest = dict[str, Any]

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
PROMPT = {"model": "stdlib-target", "prompt": "def parse(self, text):", "max_tokens": 32, "temperature": 0}
ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def pod(name: str, image: str, **container: Any) -> Manifest:
    """A pod under the restricted profile, with the two folders that may be written to."""
    made = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "tmp", "mountPath": "/tmp"}],
        **container,
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "securityContext": user,
            "containers": [made],
            "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
        },
    }


@pytest.fixture(scope="module")
def here(kubectl: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace that the tests of this module share: starting a replica takes half a minute."""
    name = f"n-images-{os.getpid()}"
    kubectl("create", "namespace", name)

    def run(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return kubectl("-n", name, *arguments, stdin=stdin, check=check)

    # A namespace's service account and its token come a moment after it; until then no pod is admitted.
    first = yaml.safe_dump(pod("first", OPERATOR_IMAGE))
    for _ in range(100):
        if "created" in run("create", "--dry-run=server", "-f", "-", stdin=first, check=False):
            break
        subprocess.run(["sleep", "0.2"], check=True)
    yield run
    kubectl("delete", "namespace", name, "--timeout=120s")


def apply(here: Kubectl, *manifests: Manifest) -> None:
    """Apply *manifests*."""
    here("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))


def is_ready(here: Kubectl, name: str) -> None:
    """Wait for the pod to be ready; its log is told when it is not."""
    try:
        here("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=240s")
    except AssertionError as error:
        error.add_note(here("describe", "pod", name, check=False))
        error.add_note(here("logs", name, "--tail=40", check=False))
        raise


def exit_code(here: Kubectl, name: str) -> int:
    """Tell the pod's first process to end, as a kubelet does; the status it ended with. A deleted pod would not say."""
    here("exec", name, "--", "sh", "-c", "kill -TERM 1")
    ended = "{.status.containerStatuses[0].state.terminated.exitCode}"
    for _ in range(600):
        if code := here("get", "pod", name, "-o", f"jsonpath={ended}"):
            return int(code)
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError(f"{name} did not end:\n" + here("logs", name, "--tail=40", check=False))


@pytest.fixture(scope="module")
def replica(here: Kubectl) -> str:
    """A ready pod of the runtime image that serves the bundled pair behind a Service named as it is."""
    arguments = ["serve", TARGET, "--draft", DRAFT, "--host", "0.0.0.0", "--port", "8000", "--lame-duck", "1"]
    probe = {"httpGet": {"path": "/ready", "port": 8000}, "periodSeconds": 1}
    resources = {"limits": {"cpu": "2", "memory": "2Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "replica"},
        "spec": {"selector": {"app": "replica"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    # By arguments alone: the entry point is the image's own.
    apply(here, pod("replica", RUNTIME_IMAGE, args=arguments, readinessProbe=probe, resources=resources), service)
    is_ready(here, "replica")
    return "replica"


def test_a_replica_serves_the_bundled_pair_by_its_dns_name(here: Kubectl, replica: str) -> None:
    """Another pod asks `http://replica/v1/completions`, and gets 32 tokens: no hub, no token, no write to the image."""
    url = f"http://{replica}/v1/completions"
    apply(here, pod("client", OPERATOR_IMAGE, command=["python", "-c", ASK, url, json.dumps(PROMPT)]))
    for _ in range(300):
        phase = here("get", "pod", "client", "-o", "jsonpath={.status.phase}")
        if phase in ("Succeeded", "Failed"):
            break
        subprocess.run(["sleep", "0.2"], check=True)
    log = here("logs", "client", check=False)
    assert phase == "Succeeded", log
    answer = json.loads(log)
    assert answer["usage"]["completion_tokens"] == 32
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["text"].strip()


def test_a_replica_meets_the_restricted_profile(here: Kubectl, replica: str) -> None:
    """Its process is user and group 65532, has no capability, and can write to the mounted folders alone."""
    status = here("exec", replica, "--", "cat", "/proc/1/status")
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert set(fields["Uid"]) == set(fields["Gid"]) == {"65532"}
    assert int(fields["CapEff"][0], 16) == int(fields["CapBnd"][0], 16) == 0
    assert fields["NoNewPrivs"] == ["1"]
    writable = here(
        "exec", replica, "--", "sh", "-c", "for d in / /venv /models /tmp /cache; do test -w $d && echo $d; done; true"
    )
    assert writable.split() == ["/tmp", "/cache"]


def test_a_replica_begins_with_kernels_that_are_compiled(here: Kubectl, replica: str) -> None:
    """By the image's build, for this processor too: numba has compiled nothing more, not even after requests."""
    list_of = "cd {} && find . -type f | sort"
    level = "/kernels/$(python3 -c 'from smartspec.native import folder_of; import os; print(folder_of(os.environ))')"
    brought, kept = (here("exec", replica, "--", "sh", "-c", list_of.format(f)).split() for f in (level, "/tmp/numba"))
    assert kept == brought
    assert len(kept) > 50


def test_a_replica_compiles_its_forward(here: Kubectl, replica: str) -> None:
    """The compiler and the headers it needs are there, and what it writes has a place."""
    assert "compiled=True" in here("logs", replica), here("logs", replica)


def test_a_replica_can_send_traces(here: Kubectl, replica: str) -> None:
    """What `--otlp-endpoint` needs is in the image, though the package itself does without."""
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    here("exec", replica, "--", "python", "-c", f"import opentelemetry.sdk.trace, {exporter}")


def test_a_replica_ends_in_order_when_told_to(here: Kubectl, replica: str) -> None:
    """SIGTERM reaches the server behind the image's entry point, and it exits with 0. The last test of this replica."""
    assert exit_code(here, replica) == 0


def test_the_operator_ends_in_order_when_told_to(here: Kubectl, kubectl: Kubectl, release: Release) -> None:
    """The operator's image runs the operator under the same profile, and SIGTERM ends it with 0."""
    account = f"operator-{os.getpid()}"
    namespace = json.loads(here("create", "serviceaccount", account, "-o", "json"))["metadata"]["namespace"]
    kubectl(
        "create",
        "clusterrolebinding",
        account,
        "--clusterrole=cluster-admin",
        f"--serviceaccount={namespace}:{account}",
    )
    try:
        probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}
        made = pod(
            "operator",
            OPERATOR_IMAGE,
            args=["run", "--namespace", namespace, "--probe-port=8080"],
            readinessProbe=probe,
        )
        made["spec"]["serviceAccountName"] = account
        apply(here, made)
        is_ready(here, "operator")
        assert exit_code(here, "operator") == 0
    finally:
        kubectl("delete", "clusterrolebinding", account)


@pytest.mark.parametrize(("image", "megabytes"), [(OPERATOR_IMAGE, 200), (RUNTIME_IMAGE, 1700)])
def test_an_image_keeps_its_size(image: str, megabytes: int, node: Path) -> None:
    """What we put above the base fits its bound; docs/install.md says what it is made of."""
    if not node.with_name("apiserver.pid").exists():
        pytest.skip("the images were built elsewhere")
    size = int(subprocess.check_output([SCRIPT, "size", image], text=True))
    print(f"{image}: {size} MB above its base")
    assert size < megabytes
