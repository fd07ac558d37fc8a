"""What a server counts of itself in `/metrics`, before and after: our counters and vLLM's, which share names."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

PREFIXES = (
    "smartspec_",
    "vllm:spec_decode_",
    "vllm:generation_tokens",
    "vllm:num_preemptions",
    "vllm:prefix_cache_",
    "vllm:iteration_tokens",
)
IDENTITY = frozenset({"model_name", "engine"})
"""Labels that only say whose counter it is."""

GENERATED = "vllm:generation_tokens_total"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_BY_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total{{position={}}}"
MAX_POSITIONS = 64


def counters(text: str) -> dict[str, float]:
    """Counters, and histograms' sums and counts, by name with its labels, of an exposition; raises ValueError."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if not family.name.startswith(PREFIXES) or family.type not in ("counter", "histogram"):
            continue
        for sample in family.samples:
            if sample.name.endswith(("_total", "_sum", "_count")):
                labels = [f"{name}={value}" for name, value in sorted(sample.labels.items()) if name not in IDENTITY]
                key = f"{sample.name}{{{','.join(labels)}}}" if labels else sample.name
                values[key] = values.get(key, 0.0) + sample.value
    return values


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was counted in between, without what was not."""
    return {
        name: round(value - before.get(name, 0.0), 6) for name, value in after.items() if value != before.get(name, 0.0)
    }


@dataclass(frozen=True)
class Speculation:
    """What became of proposals while something was measured: of `drafted` tokens in `drafts` proposals `accepted` were
    kept, `accepted_by_position` of them first, second and so on."""

    drafts: float
    drafted: float
    accepted: float
    accepted_by_position: tuple[float, ...] = ()

    @classmethod
    def of(cls, counted: Mapping[str, float]) -> "Speculation":
        """Out of the difference between two scrapes."""
        by_position = [counted.get(_BY_POSITION.format(position), 0.0) for position in range(MAX_POSITIONS)]
        while by_position and not by_position[-1]:
            by_position.pop()
        drafts, drafted, accepted = (counted.get(name, 0.0) for name in (_DRAFTS, _DRAFTED, _ACCEPTED))
        return cls(drafts, drafted, accepted, tuple(by_position))

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted, or None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens out of a step that verified a proposal, the target's own included; None when there was none."""
        return 1.0 + self.accepted / self.drafts if self.drafts else None
