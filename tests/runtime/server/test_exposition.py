"""`/metrics`: the whole contract, with numbers that follow what happened."""

from prometheus_client.parser import text_string_to_metric_families

from fake_engine import FakeEngine
from serving import serving
from smartspec.metrics import METRICS
from smartspec.server.exposition import RecentText


async def read_metrics(engine: FakeEngine, *bodies: dict[str, object]) -> dict[str, float]:
    """Serve *bodies*, then read the samples: `name{label=value,...}`, the model's label left out."""
    async with serving(engine) as server:
        for body in bodies:
            assert (await server.post("/v1/completions", **body))[0] == 200
        async with server.public.get("/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await response.text()
    samples = {}
    assert "_created" not in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if family.name.startswith(("vllm:", "smartspec_")):
                assert labels.pop("model_name") == "fake"
            rest = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
            samples[f"{sample.name}{{{rest}}}" if rest else sample.name] = sample.value
    return samples


async def test_every_metric_of_the_contract_appears() -> None:
    """After one request that speculated, no name of the table is missing."""
    samples = await read_metrics(FakeEngine(), {"prompt": "abc"})
    for metric in METRICS:
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        assert any(sample.split("{")[0] == name for sample in samples), metric.name


async def test_what_was_learned_is_shown() -> None:
    """Coefficients of the time model that are more than zero, and acceptance by position."""
    samples = await read_metrics(FakeEngine(), {"prompt": "abc"})
    coefficients = {name: value for name, value in samples.items() if "coefficient" in name}
    assert coefficients == {"smartspec_time_model_coefficient_seconds{term=target.step}": 0.02}
    assert samples["smartspec_acceptance_probability{position=1,proposer=draft,verifier=greedy}"] == 0.5


async def test_requests_are_counted_and_timed() -> None:
    """Tokens, ends and latencies of two sequences."""
    samples = await read_metrics(FakeEngine(tokens_per_step=2), {"prompt": "abc", "max_tokens": 6, "n": 2})
    assert samples["vllm:prompt_tokens_total"] == 8
    assert samples["vllm:generation_tokens_total"] == 12
    assert samples["vllm:request_success_total{finished_reason=length}"] == 2
    assert samples["vllm:time_to_first_token_seconds_count"] == 2
    assert samples["vllm:inter_token_latency_seconds_count"] == 4
    assert samples["vllm:e2e_request_latency_seconds_count"] == 2
    assert samples["vllm:request_time_per_output_token_seconds_count"] == 2
    assert samples["vllm:request_generation_tokens_sum"] == 12


async def test_steps_are_counted_by_part_and_proposer() -> None:
    """Three steps of one sequence: time by part, k, acceptance and waste."""
    samples = await read_metrics(FakeEngine(tokens_per_step=2), {"prompt": "abc", "max_tokens": 6})
    assert samples["smartspec_steps_total"] == 3
    assert round(samples["smartspec_step_seconds_total{part=target}"], 6) == 0.024
    assert round(samples["smartspec_predicted_step_seconds_total"], 6) == 0.036
    assert samples["smartspec_tokens_kept_total"] == 6
    assert round(samples["smartspec_time_model_error_ratio_sum"], 6) == 0.6
    assert samples["vllm:spec_decode_num_draft_tokens_total"] == 9
    assert samples["vllm:spec_decode_num_accepted_tokens_per_pos_total{position=0}"] == 3
    assert samples["smartspec_wasted_draft_tokens_total{proposer=draft}"] == 6
    assert samples["smartspec_speculative_tokens_sum{proposer=draft}"] == 9
    assert samples["smartspec_ready"] == 1
    assert samples["vllm:cache_config_info{block_size=16,cache_dtype=float32,num_gpu_blocks=64}"] == 1


def test_a_flood_of_scrapes_takes_no_more_than_a_tenth_of_a_core() -> None:
    """What took a second to write is given to whoever asks in the next ten."""
    now, written = 0.0, 0

    def write() -> bytes:
        nonlocal now, written
        now, written = now + 1.0, written + 1
        return str(written).encode()

    text = RecentText(lambda: now)

    def read(at: float) -> bytes:
        nonlocal now
        now = at
        return text.text(write)

    assert [read(at) for at in (0.0, 1.5, 10.9, 11.1, 12.0)] == [b"1", b"1", b"1", b"2", b"2"]
