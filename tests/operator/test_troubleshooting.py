"""The troubleshooting page is keyed by reasons: each one that the operator can give stands there, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "operator/smartspec_operator"
GOOD = {
    "Serving", "ReplicasReady", "Complete", "AsExpected", "AllReplicasAnswer", "Applied", "Attained", "Autoscaling",
}  # fmt: skip
"""Reasons that need no advice."""


def given() -> set[str]:
    """The reasons that the sources spell out."""
    modules = ("conditions", "integrations", "troubles", "observe", "refusals", "controller")
    text = "\n".join((SOURCES / f"{name}.py").read_text() for name in modules)
    found = set(re.findall(r'Condition\(\s*"\w+",\s*"\w+",\s*"(\w+)"', text))
    found |= set(re.findall(r'Problem\(\s*"(\w+)"', text))
    found |= set(re.findall(r'(?:return|refused = \() ?"([A-Z]\w+)"', text))
    found |= set(re.findall(r'^(?:BACK_OFF|PULL|FAILED_CREATE) = "(\w+)"', text, re.MULTILINE))
    return found - GOOD - {""}


def test_every_reason_has_advice() -> None:
    """A reason without a line leaves its reader alone."""
    page = (ROOT / "docs/operator.md").read_text()
    advised = set(re.findall(r"`(\w+)`", page))
    assert given() - advised == set()
    assert {"ImagePullBackOff", "CrashLoopBackOff", "SecretMissing", "CacheNotShared"} <= given()
