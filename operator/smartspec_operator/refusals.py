"""What the API server says of a child that it refuses, in terms of the SmartSpec that asked for it."""

import re

FIELDS = (
    (r"containers\[[^]]+\]\.resources", "template.resources"),
    (r"containers\[[^]]+\]\.env", "template.env"),
    (r"containers\[[^]]+\]\.volumeMounts", "template.volumeMounts"),
    (r"containers\[[^]]+\]\.imagePullPolicy", "template.imagePullPolicy"),
    (r"containers\[[^]]+\]\.image", "template.image"),
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
    (r"quantities", "template.resources"),
)
"""Where a field of a child comes from. The first that matches counts."""

UNREADABLE = re.compile("typed patch object|quantities|cannot be handled as|not declared in schema|unable to convert")
"""What old API servers say, as an internal error, of a patch whose values they cannot read."""


def refusal_reason(status: int, message: str) -> str | None:
    """Why a child that was answered with HTTP *status* cannot be: None where trying again may help."""
    if status in (400, 422) or (status == 500 and UNREADABLE.search(message)):
        return "InvalidSpec"
    return "ApplyFailed" if status == 403 else None


def is_trouble(status: int) -> bool:
    """Whether the server, or a webhook behind it, failed or did not answer: trying again helps once that is mended."""
    return status == 0 or status >= 500


def spec_field(message: str) -> str:
    """*message* with the spec's own field before it, where one of its fields is named in it."""
    for pattern, ours in FIELDS:
        if re.search(rf"(?<![A-Za-z]){pattern}(?![A-Za-z])", message):
            return f"spec.{ours}: {message}"
    return message
