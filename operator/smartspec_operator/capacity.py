"""What one replica can carry within the objectives, by the same goodput model that the runtime itself uses."""

from smartspec.policy.capacity import OperatingPoint, capacity, operating_point
from smartspec.policy.settings import PolicySettings, Priors
from smartspec_operator.fleet import Fleet
from smartspec_operator.resource import SmartSpec


def predicted(owner: SmartSpec, priors: Priors | None, fleet: Fleet, settings: PolicySettings) -> OperatingPoint | None:
    """The point of greatest throughput of one replica under *settings*, for the requests that the fleet meets.

    None while no request has come or no time model is known. Running requests are bounded by the spec, by *settings*,
    and by how many contexts fit into KV memory.
    """
    lengths = fleet.lengths
    if priors is None or priors.latency is None or lengths.output_tokens <= 0:
        return None
    bounds = [owner.spec.server.max_num_seqs]
    if settings.max_running_requests is not None:
        bounds.append(settings.max_running_requests)
    if fleet.kv_cache_tokens:
        # What requests share (a system prompt, say) is in memory once: as measured, for it cannot be known in advance.
        each = (lengths.prompt_tokens + lengths.output_tokens) * fleet.kv_tokens_per_context_token
        bounds.append(max(1, int(fleet.kv_cache_tokens / each)))
    return capacity(
        priors,
        lengths,
        max_running_requests=min(bounds),
        tpot_target_seconds=settings.tpot_target_seconds,
        max_speculative_tokens=0 if settings.policy == "off" else settings.max_speculative_tokens,
        max_prefill_tokens=owner.spec.server.max_num_batched_tokens,
    )


def expected(
    owner: SmartSpec, priors: Priors | None, fleet: Fleet, settings: PolicySettings, concurrency: int
) -> float | None:
    """Tokens per second that the model expects of one replica at *concurrency*; None where `predicted` is None."""
    if priors is None or priors.latency is None or fleet.lengths.output_tokens <= 0:
        return None
    return operating_point(
        priors,
        fleet.lengths,
        concurrency,
        max_speculative_tokens=0 if settings.policy == "off" else settings.max_speculative_tokens,
        max_prefill_tokens=owner.spec.server.max_num_batched_tokens,
    ).tokens_per_second
