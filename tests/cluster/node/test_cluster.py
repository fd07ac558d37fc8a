"""The cluster that the other tests stand on: names resolve, and its API server may go away and come back."""

import json
import time
import urllib.request
from collections.abc import Callable

import yaml

from nodes import OPERATOR_IMAGE, ApiServer

Kubectl = Callable[..., str]


def web_server(kubectl: Kubectl, namespace: str) -> None:
    """A pod that serves files, behind a Service `web` and a headless one `pods`."""
    server = {"name": "main", "image": OPERATOR_IMAGE, "imagePullPolicy": "IfNotPresent",
              "command": ["python", "-m", "http.server", "8080"], "workingDir": "/venv",
              "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}  # fmt: skip
    manifests = [
        {"kind": "Pod", "metadata": {"name": "server", "labels": {"app": "web"}},
         "spec": {"containers": [server], "terminationGracePeriodSeconds": 0}},
        *({"kind": "Service", "metadata": {"name": name},
           "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **more}}
          for name, more in (("web", {}), ("pods", {"clusterIP": "None"}))),
    ]  # fmt: skip
    text = yaml.safe_dump_all([{"apiVersion": "v1", **manifest} for manifest in manifests])
    kubectl("-n", namespace, "apply", "-f", "-", stdin=text)
    kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/server", "--timeout=60s")


def resolved(kubectl: Kubectl, namespace: str, name: str) -> str:
    """What *name* resolves to in the pod, or the error's name."""
    code = f"import socket\ntry: print(socket.gethostbyname({name!r}))\nexcept OSError as e: print(type(e).__name__)"
    return kubectl("-n", namespace, "exec", "server", "--", "python", "-c", code).strip()


def eventually_resolves(kubectl: Kubectl, namespace: str, name: str, to: str) -> None:
    """Wait until *name* resolves *to* that."""
    deadline = time.monotonic() + 10
    while (found := resolved(kubectl, namespace, name)) != to:
        assert time.monotonic() < deadline, f"{name}: {found}, not {to}"
        time.sleep(0.2)


def test_services_have_names(kubectl: Kubectl, namespace: str) -> None:
    """By short name and by full name; a headless one leads to its pods; a deleted one is forgotten."""
    web_server(kubectl, namespace)
    address = kubectl("-n", namespace, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    pod = kubectl("-n", namespace, "get", "pod", "server", "-o", "jsonpath={.status.podIP}")
    eventually_resolves(kubectl, namespace, "web", address)
    eventually_resolves(kubectl, namespace, f"web.{namespace}.svc.cluster.local", address)
    eventually_resolves(kubectl, namespace, f"pods.{namespace}", pod)
    kubectl("-n", namespace, "delete", "service", "web")
    eventually_resolves(kubectl, namespace, "web", "gaierror")


def test_the_api_server_goes_and_comes_back(
    kubectl: Kubectl, namespace: str, api_server: ApiServer, service_url: Callable[[str, str], str]
) -> None:
    """While it is away pods serve on; afterwards every object is there, as it was, and no pod was started anew."""
    web_server(kubectl, namespace)
    kubectl("-n", namespace, "create", "configmap", "kept", "--from-literal=a=b")
    url = service_url(namespace, "web")

    def state() -> list[str]:
        found = json.loads(kubectl("-n", namespace, "get", "configmap/kept", "pod/server", "service/web", "-o", "json"))
        restarts = [
            str(item.get("status", {}).get("containerStatuses", [{}])[0].get("restartCount")) for item in found["items"]
        ]
        return [item["metadata"]["uid"] for item in found["items"]] + restarts

    before = state()
    api_server.stop()
    try:
        assert "connection to the server" in _refused(kubectl)
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
            time.sleep(1)
    finally:
        seconds = api_server.start()
    print(f"the API server answered {seconds:.1f} s after its start")
    assert state() == before


def _refused(kubectl: Kubectl) -> str:
    try:
        return kubectl("get", "nodes")
    except AssertionError as error:
        return str(error)
