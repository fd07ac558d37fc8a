"""The metrics contract: names that Prometheus and vLLM's dashboards understand, and histograms that add up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartspec.metrics import LATENCY_BUCKETS_SECONDS, METRICS, Histogram, Metric

COUNTS = st.lists(
    st.integers(0, 50), min_size=len(LATENCY_BUCKETS_SECONDS) + 1, max_size=len(LATENCY_BUCKETS_SECONDS) + 1
).map(lambda counts: Histogram(tuple(counts)))


def test_names_are_unique_and_prefixed() -> None:
    """Every name is vLLM's or ours, once."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(vllm:|smartspec_)[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_name_and_kind_agree(metric: Metric) -> None:
    """Counters end in _total, infos in _info; histograms, and only they, have rising buckets."""
    name, kind, buckets = metric.name, metric.kind, metric.buckets
    assert name.endswith("_total") or kind != "counter"
    assert name.endswith("_info") == (kind == "info")
    assert bool(buckets) == (kind == "histogram")
    assert list(buckets) == sorted(set(buckets))
    assert metric.help.endswith(".")


@given(COUNTS, st.floats(0.001, 150))
def test_share_within_rises_with_the_bound(histogram: Histogram, bound: float) -> None:
    """A larger bound never holds a smaller share."""
    lower, upper = histogram.share_within(bound), histogram.share_within(2 * bound)
    assert (lower is None) == (histogram.total == 0)
    if lower is not None and upper is not None:
        assert 0 <= lower <= upper <= 1


@given(COUNTS, COUNTS)
def test_merged_holds_both(first: Histogram, second: Histogram) -> None:
    """Merging adds counts, in either order."""
    assert first.merged(second) == second.merged(first)
    assert first.merged(second).total == first.total + second.total


@given(COUNTS.filter(lambda histogram: histogram.total > 0), st.floats(0.05, 0.95))
def test_quantile_and_share_are_inverse(histogram: Histogram, q: float) -> None:
    """At least a share q lies within the q-quantile, unless that lies above the last bound."""
    quantile = histogram.quantile(q)
    assert quantile is not None
    if quantile < LATENCY_BUCKETS_SECONDS[-1]:
        assert histogram.share_within(quantile) >= q - 1e-9
