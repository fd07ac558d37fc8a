"""Scored prompts: each prompt token's log probability comes once, in order, however the prompt was computed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy, generate
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.scheduling.request import MAX_SCORED_TOKENS, Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

BLOCK_SIZE = 4


def engine_of(
    num_blocks: int, budget: int, seed: int = 0, *, max_model_len: int = 64, max_num_seqs: int = 8
) -> Engine[dict[str, tuple[int, ...]]]:
    """An engine of integers with prefix caching."""
    config = SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, block_size=BLOCK_SIZE)
    scheduler = Scheduler(
        config, RandomPolicy(seed), num_blocks=num_blocks, max_model_len=max_model_len, proposers=("draft", "lookup")
    )
    return Engine(scheduler, IntegerProposer(BLOCK_SIZE), IntegerRunner(BLOCK_SIZE), lambda: 0.0)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=6),
    wants=st.lists(st.sampled_from([None, 0, 2]), min_size=6, max_size=6),
    num_blocks=st.integers(8, 20),
    budget=st.integers(8, 24),
    seed=st.integers(0, 100),
)
def test_each_prompt_token_is_scored_once(
    prompts: list[list[int]], wants: list[int | None], num_blocks: int, budget: int, seed: int
) -> None:
    """In chunks, beside cached prefixes, before and after preemptions; with the first token of the answer."""
    engine = engine_of(num_blocks, budget, seed)
    for i, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=8, temperature=0.0, prompt_logprobs=wants[i])
        engine.scheduler.add(Request(str(i), prompt, sampling, 0, 0.0))
    scored: dict[str, list[int]] = {}
    texts: dict[str, list[int]] = {}
    while engine.scheduler.has_work:
        for output in engine.step().outputs:
            is_first = output.request_id not in texts
            scored.setdefault(output.request_id, []).extend(one.token_id for one in output.prompt_logprobs)
            assert is_first or not output.prompt_logprobs
            texts.setdefault(output.request_id, []).extend(output.new_token_ids)
    engine.scheduler.check_idle()
    for i, prompt in enumerate(prompts):
        assert scored[str(i)] == ([] if wants[i] is None else prompt[1:])
        assert texts[str(i)] == generate(prompt, 8)


def test_a_preempted_prompt_goes_on_where_its_scores_end() -> None:
    """What was scored before a preemption in the middle of the prompt does not come again."""
    engine = engine_of(num_blocks=9, budget=3, max_num_seqs=2)
    prompt = [3, 1] * 12
    engine.scheduler.add(Request("old", [1], SamplingParams(max_tokens=30, temperature=0.0), 0, 0.0))
    engine.step()
    sampling = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=0)
    young = Request("young", prompt, sampling, 0, 0.0)
    engine.scheduler.add(young)
    scored_by_then: list[int] = []
    while engine.scheduler.has_work:
        before = young.num_preemptions
        for output in engine.step().outputs:
            if output.request_id == "young" and output.prompt_logprobs:
                assert [one.token_id for one in output.prompt_logprobs] == prompt[1:]
        if young.num_preemptions > before:
            scored_by_then.append(len(young.prompt_logprobs))
    assert any(0 < num < len(prompt) - 1 for num in scored_by_then), "never preempted in the middle"


def test_a_step_scores_no_more_than_it_has_room_for() -> None:
    """Rows of logits are as wide as the vocabulary: their number is bounded, whatever the budget; others go on."""
    engine = engine_of(num_blocks=1000, budget=4096, max_model_len=2000)
    for i in range(3):
        sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0 if i < 2 else None)
        engine.scheduler.add(Request(str(i), [i] * 700, sampling, 0, 0.0))
    steps = 0
    while engine.scheduler.has_work:
        engine.step()
        steps += 1
    runner = engine.runner
    assert isinstance(runner, IntegerRunner)
    counts = [sum(len(one.prompt_targets) for one in plan.scheduled) for plan in runner.steps]
    assert max(counts) <= MAX_SCORED_TOKENS
    assert sum(counts) == 2 * 699
    assert steps <= 7
