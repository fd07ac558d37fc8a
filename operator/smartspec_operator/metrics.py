"""What the operator measures of itself, for its own `/metrics`: every name is spelled here, once."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from smartspec_operator.reported import Status
from smartspec_operator.world import Due

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """One registry of its own, so that two operators in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"smartspec_operator_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"smartspec_operator_{name}", text, buckets=BUCKETS, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"smartspec_operator_{name}", text, registry=self.registry)

        self.reconciles = counter("reconciles_total", "Reconciles by result.", "result")
        self.decisions = counter("decisions_total", "Decisions that changed something.", "stage", "reason")
        self.stages = counter("stages_total", "Stages run, over all resources: tuning, scaling.", "stage")
        self.errors = counter("errors_total", "Defects: exceptions that no condition tells of.")
        self.api_requests = counter("api_requests_total", "Requests to the API server.", "verb", "kind", "code")
        self.replica_requests = counter("replica_requests_total", "Requests to replicas.", "path", "result")
        self.reconcile_seconds = histogram("reconcile_seconds", "Time of one reconcile of one resource.")
        self.tick_seconds = histogram("tick_seconds", "Time of one round over all resources.")
        self.resources = gauge("resources", "SmartSpecs served.")
        self.leader = gauge("leader", "1 while this process holds the lease.")

    def staged(self, due: Due) -> None:
        """Count the stages that a reconcile runs."""
        if due.tuning:
            self.stages.labels("tuning").inc()
        if due.scaling:
            self.stages.labels("scaling").inc()

    def decided(self, old: Status, new: Status) -> None:
        """Count what was decided between two reports."""
        before = old.policy.generation if old.policy is not None else 0
        if new.policy is not None and new.policy.generation != before:
            self.decisions.labels("policy", "Changed").inc()
        known = {(record.time, record.to_replicas) for record in old.scaling_history}
        for record in new.scaling_history:
            if (record.time, record.to_replicas) not in known:
                self.decisions.labels("replicas", record.reason).inc()

    def exposition(self) -> bytes:
        """All of it as text."""
        return generate_latest(self.registry)
