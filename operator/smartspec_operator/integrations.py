"""Children of kinds that only some clusters know: a PodMonitor, an InferencePool; pure, as all rendering is."""

from collections.abc import Iterator

from smartspec_operator.reported import Condition
from smartspec_operator.resource import BUDGET, PORT, PORT_NAME, Manifest, SmartSpec
from smartspec_operator.world import Observation

LABEL_ENGINE = "inference.networking.k8s.io/engine-type"
"""By this label an endpoint picker finds out which names a model server's metrics have."""
ENGINE = "smartspec"


def integrations(owner: SmartSpec, known_kinds: frozenset[str]) -> list[Manifest]:
    """Those that the spec asks for and the cluster knows."""
    return [manifest for _, manifest in _wanted(owner) if manifest["kind"] in known_kinds]


def integrated(owner: SmartSpec, seen: Observation) -> Condition | None:
    """Whether all that is wanted could be made, and the rest removed; None where there is neither."""
    wanted = list(_wanted(owner))
    for field, manifest in wanted:
        if (problem := seen.integration_problems.get(manifest["kind"])) is not None:
            return Condition("Integrated", "False", problem.reason, f"spec.integrations.{field}: {problem.message}")
        if manifest["kind"] not in seen.known_kinds:
            message = f"spec.integrations.{field}: this cluster has no {manifest['kind']} ({manifest['apiVersion']})"
            return Condition("Integrated", "False", "KindMissing", message)
    if (problem := seen.integration_problems.get(BUDGET)) is not None and (seen.deployed_replicas or 0) > 1:
        return Condition("Integrated", "False", problem.reason, f"the {BUDGET} of several replicas: {problem.message}")
    for live in seen.integrations:
        if (problem := seen.integration_problems.get(live["kind"])) is not None:
            message = f"{live['kind']} {live['metadata']['name']}: {problem.message}"
            return Condition("Integrated", "False", problem.reason, message)
    complete = Condition("Integrated", "True", "Complete", "all that spec.integrations asks for is there")
    return complete if wanted else None


def _wanted(owner: SmartSpec) -> Iterator[tuple[str, Manifest]]:
    """Field and manifest of each integration in the spec."""
    asked = owner.spec.integrations
    if asked.pod_monitor is not None:
        metadata = owner.child_metadata(owner.name)
        endpoint = {"port": PORT_NAME, "path": "/metrics"}
        yield (
            "podMonitor",
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PodMonitor",
                "metadata": {**metadata, "labels": {**asked.pod_monitor.labels, **metadata["labels"]}},
                "spec": {"selector": {"matchLabels": owner.labels}, "podMetricsEndpoints": [endpoint]},
            },
        )
    if asked.inference_pool is not None:
        picker = {"name": asked.inference_pool.endpoint_picker, "port": {"number": asked.inference_pool.port}}
        yield (
            "inferencePool",
            {
                "apiVersion": "inference.networking.k8s.io/v1",
                "kind": "InferencePool",
                "metadata": owner.child_metadata(owner.name),
                "spec": {
                    "selector": {"matchLabels": owner.labels},
                    "targetPorts": [{"number": PORT}],
                    "endpointPickerRef": picker,
                },
            },
        )
