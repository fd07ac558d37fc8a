"""What becomes of the policy in force where others write into its ConfigMap, or delete it."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from smartspec.policy.settings import PolicySettings, encode_settings
from smartspec_operator.recollect import in_force, scaled
from smartspec_operator.reported import ReportedPolicy, ScalingRecord, Status, as_manifest
from smartspec_operator.resource import ANNOTATION_DECIDED, ANNOTATION_TUNING, SmartSpec, parse
from smartspec_operator.world import Decided, TuningState, encode

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY = PolicySettings(
    generation=3, max_speculative_tokens=4, tpot_target_seconds=0.04, max_running_requests=9, reason="why"
)


def owner(policy: ReportedPolicy | None) -> SmartSpec:
    """A SmartSpec whose status reports *policy*."""
    return parse(
        {
            "metadata": {"name": "demo", "uid": "u", "generation": 1},
            "spec": {"model": {"source": "m"}, "slo": {"tpotSeconds": 0.05}},
            "status": as_manifest(Status(policy=policy)),
        }
    )


REPORTED = ReportedPolicy(
    generation=3,
    name="request",
    max_speculative_tokens=4,
    tpot_target_seconds=0.04,
    max_running_requests=9,
    reason="why",
)


def config_map(text: str, manager: str) -> dict[str, Any]:
    """The ConfigMap with *text*, written by *manager*."""
    entry = {"manager": manager, "operation": "Apply", "fieldsV1": {"f:data": {"f:policy.json": {}}}}
    annotations = {ANNOTATION_TUNING: encode(TuningState(tpot_factor=0.7))}
    return {"metadata": {"managedFields": [entry], "annotations": annotations}, "data": {"policy.json": text}}


def written(**changed: Any) -> str:
    """A policy as a file."""
    return encode_settings(msgspec.structs.replace(POLICY, **changed)).decode()


def test_ours_counts_though_the_status_is_older() -> None:
    """An operator may end between the two writes."""
    live = config_map(written(generation=4), "smartspec-operator")
    settings, tuning = in_force(owner(REPORTED), live, NOW)
    assert settings == msgspec.structs.replace(POLICY, generation=4)
    assert tuning == TuningState(tpot_factor=0.7)


@pytest.mark.parametrize("text", ["{}", "[", '{"generation": 2, "policy": "off"}'])
def test_what_nobody_takes_for_ours_changes_nothing(text: str) -> None:
    """Whoever has read it takes ours, under the number that it has: the replicas need not be told."""
    settings, tuning = in_force(owner(REPORTED), config_map(text, "kubectl-edit"), NOW)
    assert settings == POLICY
    assert tuning == TuningState(tpot_factor=0.7)


@pytest.mark.parametrize("number", [3, 5])
def test_what_has_our_number_is_outnumbered(number: int) -> None:
    """A replica that has read it would refuse ours, or nobody would know."""
    text = written(generation=number, policy="off")
    settings, _ = in_force(owner(REPORTED), config_map(text, "kubectl-edit"), NOW)
    assert settings is not None
    assert settings.generation == number + 1
    assert settings.policy == "request"


RECORDS = tuple(
    ScalingRecord(time=f"2026-03-01T1{hour}:00:00Z", from_replicas=hour, to_replicas=hour + 1, reason="Demand")
    for hour in range(3)
)


def deployment(text: str | None, manager: str = "smartspec-operator") -> dict[str, Any]:
    """The Deployment with *text* about its last decision, written by *manager*."""
    fields = {"f:metadata": {"f:annotations": {f"f:{ANNOTATION_DECIDED}": {}}}}
    annotations = {} if text is None else {ANNOTATION_DECIDED: text}
    return {
        "metadata": {
            "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": fields}],
            "annotations": annotations,
        }
    }


def scaled_owner(*records: ScalingRecord) -> SmartSpec:
    """A SmartSpec whose status has these decisions."""
    return parse(
        {
            "metadata": {"name": "demo", "uid": "u"},
            "spec": {"model": {"source": "m"}},
            "status": as_manifest(Status(scaling_history=records)),
        }
    )


def test_the_deployment_has_the_decision_that_the_status_lacks() -> None:
    """With its record, once: also where the status has learned since what came of it."""
    text = encode(Decided(3, RECORDS[2]))
    assert scaled(scaled_owner(*RECORDS[:2]), deployment(text)) == (3, RECORDS)
    measured = msgspec.structs.replace(RECORDS[2], measured_tokens_per_second=9.0)
    assert scaled(scaled_owner(*RECORDS[:2], measured), deployment(text)) == (3, (*RECORDS[:2], measured))
    assert scaled(scaled_owner(), deployment(encode(Decided(1)))) == (1, ())


@pytest.mark.parametrize(
    "live", [None, deployment(None), deployment("7"), deployment("["), deployment(encode(Decided(9)), "kubectl-edit")]
)
def test_what_no_deployment_of_ours_says_is_not_known(live: dict[str, Any] | None) -> None:
    """An older operator's has no word of it, and others' words are none of ours: then the status tells."""
    assert scaled(scaled_owner(*RECORDS), live) == (None, RECORDS)


def test_a_deleted_one_is_remembered_by_the_status() -> None:
    """And what stage one knew can be told from it; measured anew from now on."""
    settings, tuning = in_force(owner(REPORTED), None, NOW)
    assert settings == POLICY
    assert tuning == TuningState(changed=NOW, tpot_factor=0.8, ceiling=4)


def test_the_first_one_is_not_there_yet() -> None:
    """Nor one of another kind than the spec's."""
    other = msgspec.structs.replace(REPORTED, name="off")
    for policy in (None, ReportedPolicy(), other):
        assert in_force(owner(policy), None, NOW)[0] is None
