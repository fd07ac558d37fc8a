"""Why replicas do not get ready: what kubelet, scheduler and the runtime's last words say, in terms of the resource."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from smartspec_operator.resource import Manifest, SecretKey, SmartSpec
from smartspec_operator.world import Problem

ON_ITS_WAY = frozenset({"ContainerCreating", "PodInitializing"})
BACK_OFF = "CrashLoopBackOff"
PULL = "ImagePullBackOff"
FAILED_CREATE = "FailedCreate"
SAME = {"ErrImagePull": PULL, "RunContainerError": BACK_OFF}
"""Kubelet says these in turns with the other; told apart, the same trouble would be news every few seconds."""
NO_MODEL = ("taken as a hub id", "it is no hub id such as")
"""What the runtime says of weights that it cannot get."""
MOST = 500


def pod_problem(status: Mapping[str, Any]) -> Problem | None:
    """What stands in the way of the pod with this status; None while it is merely on its way."""
    has_failed = status.get("phase") == "Failed"  # evicted, refused by its node, or gone with it
    if has_failed and "reason" in status:  # its containers were killed: how they ended tells less
        return Problem(status["reason"], status.get("message", "")[:MOST])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if (found := _container_problem(container, ready)) is not None:
            return found
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Problem(condition.get("reason", "Unschedulable"), condition.get("message", "")[:MOST])
    return Problem("Failed", status.get("message", "")[:MOST]) if has_failed else None


def deployment_problem(deployment: Manifest | None) -> Problem | None:
    """Why no pod can be made at all: a quota, an admission rule, a missing service account."""
    for condition in (deployment or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Problem(condition.get("reason", FAILED_CREATE), condition.get("message", "")[:MOST])
    return None


def in_terms_of(owner: SmartSpec, problem: Problem) -> Problem:
    """*problem* with the field of *owner*'s spec that it comes from, where that can be told."""
    text = problem.message
    for field, secret in _secrets(owner):
        name, key = re.escape(secret.name), re.escape(secret.key)
        if re.search(rf'secret "{name}" not found|find key {key} in Secret \S*{name}\b', text):
            return Problem("SecretMissing", f"spec.{field}: {text}")
    claim = owner.spec.storage.cache.claim_name
    if claim is not None and f'persistentvolumeclaim "{claim}" not found' in text:
        return Problem("CacheClaimMissing", f"spec.storage.cache.claimName: {text}")
    template = owner.spec.template
    for field, named in (
        ("priorityClassName", template.priority_class_name),
        ("runtimeClassName", template.runtime_class_name),
        ("serviceAccountName", template.service_account_name),
    ):
        if named is not None and problem.reason == FAILED_CREATE and named in text:
            return Problem(problem.reason, f"spec.template.{field}: {text}")
    if problem.reason in (PULL, "InvalidImageName") and template.image is not None:
        return Problem(problem.reason, f"spec.template.image: {text}")
    if problem.reason == "ModelDownloadFailed":
        draft = owner.spec.speculation.draft
        of_draft = draft is not None and f"draft {draft.source}:" in text
        return Problem(problem.reason, f"spec.{'speculation.draft' if of_draft else 'model'}.source: {text}")
    return problem


def _container_problem(container: Mapping[str, Any], ready: bool) -> Problem | None:
    state = container.get("state", {})
    waiting, ended = state.get("waiting"), state.get("terminated")
    before = container.get("lastState", {}).get("terminated")
    if waiting is not None:
        reason = str(waiting.get("reason") or "Waiting")
        if reason in ON_ITS_WAY:
            return None
        if before is not None and SAME.get(reason, reason) == BACK_OFF:
            return _death(before)
        return Problem(SAME.get(reason, reason), str(waiting.get("message") or "").strip()[:MOST])
    if ended is not None:
        return _death(ended) if ended.get("exitCode") else None
    # Between two deaths it runs for a while: as long as it has not become ready, that is no recovery.
    return _death(before) if before is not None and before.get("exitCode") and not ready else None


def _death(ended: Mapping[str, Any]) -> Problem:
    """What the container said before it died tells more than that it is restarted ever more slowly."""
    words = str(ended.get("message") or "").strip()
    told = [line for line in words.splitlines() if line.startswith("smartspec: ")]
    message = (told[-1] if told else words)[-MOST:] or f"exit status {ended.get('exitCode')}"
    if ended.get("reason") == "OOMKilled":
        advice = "out of memory: raise spec.template.resources.limits.memory; last words"
        return Problem("OOMKilled", f"{advice}: {message}")
    if any(phrase in message for phrase in NO_MODEL):
        return Problem("ModelDownloadFailed", message)
    return Problem(BACK_OFF, message)


def _secrets(owner: SmartSpec) -> Iterator[tuple[str, SecretKey]]:
    server = owner.spec.server
    for field, secret in (
        ("model.hubTokenSecretRef", owner.spec.model.hub_token_secret_ref),
        ("server.apiKeySecretRef", server.api_key_secret_ref),
        ("server.adminKeySecretRef", server.admin_key_secret_ref),
    ):
        if secret is not None:
            yield field, secret
