"""Whether the objectives hold: told when enough requests prove it, and not turned around by chance."""

from collections.abc import Sequence

from smartspec_operator.fleet import Attainment
from smartspec_operator.reported import Condition
from smartspec_operator.resource import SmartSpec

ENOUGH_REQUESTS = 20
"""Of fewer in the window, a single late one may be a tenth: nothing is said anew."""
MARGIN = 1.0
"""By so many points of the percentile, or half of what is left above it, a share must differ before a turn is told."""


def slo_met(owner: SmartSpec, attainments: Sequence[Attainment]) -> Condition | None:
    """`SLOMet` after *attainments*, one for each objective that requests tell of; what it was where they prove nothing.

    None without an objective, and until so many requests have finished in one window that something is proved.
    """
    slo, before = owner.spec.slo, owner.status.condition("SLOMet")
    if slo.ttft_seconds is None and slo.tpot_seconds is None:
        return None
    proved = [100 * attained.share for attained in attainments if attained.requests >= ENOUGH_REQUESTS]
    low = high = float(slo.percentile)
    if before is not None and before.status == "True":
        low -= MARGIN
    elif before is not None:
        high += min(MARGIN, (100 - high) / 2)
    if any(share < low for share in proved):
        return Condition("SLOMet", "False", "Missed", f"objectives hold for less than {slo.percentile} % of requests")
    if proved and len(proved) == len(attainments) and all(share >= high for share in proved):
        return Condition("SLOMet", "True", "Attained", f"objectives hold for at least {slo.percentile} % of requests")
    return before
