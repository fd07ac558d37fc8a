"""The scheduler's promises, over a model in plain integers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy, generate
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler


def make_engine(
    policy: RandomPolicy | None = None,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 128,
) -> Engine[dict[str, tuple[int, ...]]]:
    """An engine over the integer model."""
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, block_size=block_size
    )
    scheduler = Scheduler(
        config,
        policy or RandomPolicy(fixed_k=0),
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        proposers=("draft", "lookup"),
    )
    return Engine(scheduler, IntegerProposer(block_size), IntegerRunner(block_size), clock=lambda: 0.0)


def make_request(request_id: str, prompt: list[int], max_tokens: int = 8, **sampling: object) -> Request:
    """A request that arrived at time 0."""
    return Request(request_id, prompt, SamplingParams(max_tokens=max_tokens, **sampling), 0, 0.0)  # type: ignore[arg-type]


def run(engine: Engine[dict[str, tuple[int, ...]]], max_steps: int = 5000) -> dict[str, list[int]]:
    """Step until nothing is left; the tokens of each request."""
    texts: dict[str, list[int]] = {}
    for _ in range(max_steps):
        if not engine.scheduler.has_work:
            engine.scheduler.check_idle()
            return texts
        for output in engine.step().outputs:
            texts.setdefault(output.request_id, []).extend(output.new_token_ids)
    raise AssertionError("the engine does not come to an end")


prompts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=10)


@settings(max_examples=150, deadline=None)
@given(
    prompts=prompts,
    max_tokens=st.integers(1, 24),
    num_blocks=st.integers(16, 64),
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 64),
    seed=st.integers(0, 1000),
    arrivals=st.integers(0, 3),
    aborted=st.sets(st.integers(0, 9), max_size=3),
)
def test_text_is_the_models_under_any_schedule(
    prompts: list[list[int]],
    max_tokens: int,
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    seed: int,
    arrivals: int,
    aborted: set[int],
) -> None:
    """Batching, chunking, preemption, cancellation and any k change no token, lose none, and stay in budget."""
    policy = RandomPolicy(seed=seed)
    engine = make_engine(
        policy, num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    texts: dict[str, list[int]] = {}
    queue = [make_request(str(i), prompt, max_tokens) for i, prompt in enumerate(prompts)]
    for _ in range(5000):
        for request in queue[: arrivals + 1]:
            engine.scheduler.add(request)
        del queue[: arrivals + 1]
        if not engine.scheduler.has_work:
            break
        output = engine.step()
        for result in output.outputs:
            texts.setdefault(result.request_id, []).extend(result.new_token_ids)
        assert output.stats is not None
        assert output.stats.num_running <= max_num_seqs
        if seed % 3 == 0 and len(texts) > 1:
            for i in aborted:
                engine.scheduler.abort(str(i))
    engine.scheduler.check_idle()
    runner = engine.runner
    assert isinstance(runner, IntegerRunner)
    assert all(0 < step.num_tokens <= max_num_batched_tokens for step in runner.steps)
    assert sum(o.tokens_kept for o in policy.observed) == sum(len(text) for text in texts.values())
    for i, prompt in enumerate(prompts):
        expected, text = generate(prompt, max_tokens), texts.get(str(i), [])
        assert text == expected[: len(text)]
        assert len(text) == len(expected) or (seed % 3 == 0 and i in aborted)
    assert sorted(policy.forgotten) == sorted(str(i) for i in range(len(prompts)))
