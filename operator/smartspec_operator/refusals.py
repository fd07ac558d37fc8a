"""What the API server says of a child that it refuses, in terms of the SmartSpec that asked for it."""

import re

FIELDS = (
    (r"containers\[\d+\]\.resources", "template.resources"),
    (r"containers\[\d+\]\.env", "template.env"),
    (r"containers\[\d+\]\.volumeMounts", "template.volumeMounts"),
    (r"containers\[\d+\]\.imagePullPolicy", "template.imagePullPolicy"),
    (r"containers\[\d+\]\.image", "template.image"),
    (r"volumes", "template.volumes"),
    (r"nodeSelector", "template.nodeSelector"),
    (r"tolerations", "template.tolerations"),
    (r"affinity", "template.affinity"),
    (r"imagePullSecrets", "template.imagePullSecrets"),
    (r"serviceAccountName", "template.serviceAccountName"),
    (r"runtimeClassName", "template.runtimeClassName"),
    (r"priorityClassName", "template.priorityClassName"),
    (r"template\.annotations|metadata\.annotations", "template.annotations"),
    (r"accessModes", "storage.cache.accessMode"),
    (r"storageClassName", "storage.cache.storageClassName"),
    (r"resources\.requests\.storage|resources\[storage\]", "storage.cache.size"),
)
"""Where a field of a child comes from. The first that matches counts."""

INVALID, FORBIDDEN = frozenset({400, 422, 500}), frozenset({403})


def refusal_reason(status: int) -> str | None:
    """Why a child that was answered with HTTP *status* cannot be: None where trying again may help.

    A patch whose values cannot be parsed at all is answered with 500 by old API servers.
    """
    if status in INVALID:
        return "InvalidSpec"
    return "ApplyFailed" if status in FORBIDDEN else None


def spec_field(message: str) -> str:
    """*message* with the spec's own field before it, where one of its fields is named in it."""
    for pattern, ours in FIELDS:
        if re.search(rf"(?<![A-Za-z]){pattern}(?![A-Za-z])", message):
            return f"spec.{ours}: {message}"
    return message
