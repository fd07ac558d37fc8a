"""The load as it is reported: which figures, and when a change of them is worth a write."""

from datetime import datetime
from math import sqrt

from msgspec.structs import replace

from smartspec_operator.fleet import Fleet
from smartspec_operator.reported import ReportedLoad, Status
from smartspec_operator.resource import SloSpec
from smartspec_operator.world import moment, timestamp

PATIENCE_SECONDS = 5.0
"""So long a figure that has become something else altogether (from nothing, to nothing) is not reported. One that moved
by a share of itself, beyond what chance does, waits for this over the share's square: 20 s for a half, 2 minutes for a
fifth. Under a steady load figures wander, and by how much tells how soon they will come back by themselves."""
REFRESH_SECONDS = 600.0
"""After so long any difference is reported, also one that may be chance."""
UNDATED_SECONDS = 300.0
"""How old a report without a time is taken to be, as older CRDs keep none: a large change is told, and rest is rest."""
QUANTILE_WEIGHT = 0.5
"""Quantiles of the few requests of a window jump from one to the next."""
WINDOW_SECONDS, MOST_BY_CHANCE = 30.0, 0.5
"""Figures of a window with n requests differ by some 2 / sqrt(n) of themselves by chance. Yet a stop is told."""


def reported(
    fleet: Fleet, met: float | None, slo: SloSpec, old: Status, *, now: datetime
) -> tuple[ReportedLoad, float | None]:
    """The figures of *fleet* as of *now* and the share *met* of *slo*, or the *old* ones while those tell enough.

    A share that no request tells of is the old one.
    """
    new = ReportedLoad(
        time=timestamp(now),
        requests_per_second=_rounded(fleet.requests_per_second),
        tokens_per_second=_rounded(fleet.tokens_per_second),
        running_requests=fleet.running,
        waiting_requests=fleet.waiting,
        mean_speculative_tokens=_rounded(fleet.mean_k),
        acceptance_rate=_rounded(fleet.acceptance_rate),
        predicted_goodput=_rounded(fleet.predicted_goodput),
        measured_goodput=_rounded(fleet.measured_goodput),
        ttft_seconds=rounded(fleet.ttft.quantile(slo.percentile / 100)),
        tpot_seconds=rounded(fleet.tpot.quantile(slo.percentile / 100)),
        kv_cache_usage=_rounded(fleet.kv_cache_usage),
    )
    promised = slo.ttft_seconds is not None or slo.tpot_seconds is not None
    share = rounded(met) if met is not None else old.slo_attainment if promised else None
    if old.load is None:
        return new, share
    age = (now - moment(old.load.time)).total_seconds() if old.load.time else UNDATED_SECONDS
    moved = max(_moved(old.load, new), _moved_share(fleet, met, old.slo_attainment))
    differs = replace(new, time=old.load.time) != old.load
    if moved**2 * age >= PATIENCE_SECONDS or (differs and age >= REFRESH_SECONDS):
        return new, share
    return old.load, old.slo_attainment


def rounded(value: float | None) -> float | None:
    """*value* with three digits, where there is one."""
    return None if value is None else _rounded(value)


def _moved(old: ReportedLoad, new: ReportedLoad) -> float:
    """How much the figure that has moved most has, from 0 to 1."""

    def pairs(*names: str) -> list[tuple[float, float]]:
        return [(getattr(old, name) or 0.0, getattr(new, name) or 0.0) for name in names]

    amounts = ("requests_per_second", "tokens_per_second", "predicted_goodput", "measured_goodput")
    # Where no request finished there is no quantile, and the last one stands.
    quantiles = [name for name in ("ttft_seconds", "tpot_seconds") if getattr(new, name) is not None]
    requests = WINDOW_SECONDS * max(old.requests_per_second, new.requests_per_second)
    by_chance = min(MOST_BY_CHANCE, 2 / sqrt(max(1.0, requests)))
    return max(
        *(_share(a, b, by_chance * max(a, b)) for a, b in pairs(*amounts)),
        *(_share(a, b, 0.05) for a, b in pairs("mean_speculative_tokens")),
        # Counts of one moment: chance alone makes a difference of their root.
        *(_share(a, b, 2 * sqrt(max(a, b))) for a, b in pairs("running_requests", "waiting_requests")),
        *(abs(a - b) for a, b in pairs("acceptance_rate", "kv_cache_usage")),
        *(QUANTILE_WEIGHT * _share(a, b, by_chance * max(a, b)) for a, b in pairs(*quantiles)),
    )


def _moved_share(fleet: Fleet, met: float | None, old: float | None) -> float:
    """By how much the share of requests within their objectives has moved, beyond what chance makes of so few."""
    if met is None:  # nobody asked for anything: the last answer stands
        return 0.0
    requests = max(1, fleet.ttft.total, fleet.tpot.total)
    return 1.0 if old is None else max(0.0, abs(met - old) - min(MOST_BY_CHANCE, 1 / sqrt(requests)))


def _share(old: float, new: float, chance: float) -> float:
    """By which share of the larger one the two differ, beyond what *chance* makes of them."""
    larger = max(old, new)
    return max(0.0, abs(new - old) - chance) / larger if larger > 0 else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
