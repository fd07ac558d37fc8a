"""Rules over several fields: the CRD's CEL rules once more, for files and for API servers before 1.25.

A test runs one table of cases against both.
"""

import re

from smartspec_operator.resource import Spec

MAX_NAME_LENGTH = 50
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LEADS_OUT = re.compile(r"(^|/)[.][.](/|$)")
OUR_VOLUMES = frozenset({"cache", "tmp", "policy", "api-key"})
OUR_FOLDER = re.compile(r"/+etc/+smartspec(/|$)")
NOTHING = frozenset({0, "0%"})
OUR_VARIABLES = frozenset({"SMARTSPEC_ADMIN_KEY", "SMARTSPEC_API_KEY"})


def violations(name: str, spec: Spec, running_source: str | None = None) -> list[str]:
    """Every rule that *spec* breaks, each naming its field; *running_source* is the model that runs already."""
    speculation, scale, server, template = spec.speculation, spec.autoscaling, spec.server, spec.template
    cache = spec.storage.cache
    rules = [
        (
            len(name) <= MAX_NAME_LENGTH and NAME.fullmatch(name) is not None,
            "metadata.name: must be at most 50 lowercase letters, digits and dashes, and begin with a letter",
        ),
        (
            running_source in (None, spec.model.source),
            "spec.model.source: is immutable; make another SmartSpec for another model",
        ),
        (
            LEADS_OUT.search(spec.model.source) is None,
            "spec.model.source: must not lead out of its folder by ..",
        ),
        (
            speculation.draft is None or LEADS_OUT.search(speculation.draft.source) is None,
            "spec.speculation.draft.source: must not lead out of its folder by ..",
        ),
        (
            speculation.method != "DraftModel" or speculation.draft is not None,
            "spec.speculation.draft: is required by method DraftModel",
        ),
        (
            speculation.method != "PromptLookup" or speculation.draft is None,
            "spec.speculation.draft: method PromptLookup uses none",
        ),
        (
            scale is None or scale.min_replicas <= scale.max_replicas,
            "spec.autoscaling.minReplicas: must not exceed maxReplicas",
        ),
        (
            server.max_num_batched_tokens >= server.max_num_seqs,
            "spec.server.maxNumBatchedTokens: must be at least maxNumSeqs",
        ),
        (
            [cache.size_limit, cache.claim_name, cache.size].count(None) >= 2,
            "spec.storage.cache: sizeLimit, claimName and size exclude each other",
        ),
        (
            not OUR_VOLUMES & {volume.get("name") for volume in template.volumes},
            "spec.template.volumes: the names cache, tmp, policy and api-key are taken",
        ),
        (
            not any(OUR_FOLDER.match(str(mount.get("mountPath"))) for mount in template.volume_mounts),
            "spec.template.volumeMounts: the folder /etc/smartspec is taken",
        ),
        (
            not any("hostPath" in volume for volume in template.volumes),
            "spec.template.volumes: hostPath is against the restricted profile; use a PersistentVolumeClaim",
        ),
        (
            not OUR_VARIABLES & {variable.get("name") for variable in template.env},
            "spec.template.env: keys come from spec.server.apiKeySecretRef and adminKeySecretRef",
        ),
        (
            not {template.rollout.max_surge, template.rollout.max_unavailable} <= NOTHING,
            "spec.template.rollout.maxUnavailable: must not be 0 where maxSurge is 0, or no replica is ever replaced",
        ),
    ]
    return [message for holds, message in rules if not holds]
