"""The scheduler's promises, over a model in plain integers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy, generate
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.settings import PolicyName, PolicySettings
from smartspec.policy.types import Limits
from smartspec.scheduling.client import InvalidRequestError
from smartspec.scheduling.output import SchedulerOutput
from smartspec.scheduling.policy_protocol import Policy
from smartspec.scheduling.request import Request, SamplingParams, SpeculationParams
from smartspec.scheduling.scheduler import Scheduler


def make_engine(
    policy: Policy | None = None,
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


@settings(max_examples=30, deadline=None)
@given(
    prompts=prompts,
    name=st.sampled_from(["request", "batch", "fixed", "off"]),
    num_blocks=st.integers(20, 64),
    max_num_batched_tokens=st.integers(8, 64),
    tpot_target=st.sampled_from([None, 0.001, 10.0]),
)
def test_the_real_policy_keeps_to_what_is_offered(
    prompts: list[list[int]],
    name: PolicyName,
    num_blocks: int,
    max_num_batched_tokens: int,
    tpot_target: float | None,
) -> None:
    """Whatever the policy that ships chooses, texts are the model's and steps stay within their budget."""
    policy = SpeculationPolicy(PolicySettings(policy=name, tpot_target_seconds=tpot_target), key="integers")
    engine = make_engine(policy, num_blocks=num_blocks, max_num_batched_tokens=max_num_batched_tokens)
    for i, prompt in enumerate(prompts):
        engine.scheduler.add(make_request(str(i), prompt, 20))
    assert run(engine) == {str(i): generate(prompt, 20) for i, prompt in enumerate(prompts)}
    assert all(0 < step.num_tokens <= max_num_batched_tokens for step in steps_of(engine))


def steps_of(engine: Engine[dict[str, tuple[int, ...]]]) -> list[SchedulerOutput]:
    """The plans carried out so far."""
    assert isinstance(engine.runner, IntegerRunner)
    return engine.runner.steps


def test_decoding_goes_before_prompts() -> None:
    """A long prompt is cut in chunks that leave room for everyone who decodes."""
    engine = make_engine(max_num_batched_tokens=8)
    engine.scheduler.add(make_request("old", [1, 2], 20))
    engine.step()
    engine.scheduler.add(make_request("new", [3] * 20, 2))
    for _ in range(3):
        engine.step()
    assert [[(s.request_id, len(s.token_ids)) for s in step.scheduled] for step in steps_of(engine)[1:]] == [
        [("old", 1), ("new", 7)],
        [("old", 1), ("new", 7)],
        [("old", 1), ("new", 6)],
    ]
    assert [s.samples for step in steps_of(engine)[1:] for s in step.scheduled if s.request_id == "new"] == [
        False,
        False,
        True,
    ]


def test_the_newest_is_preempted_and_comes_back_first() -> None:
    """When blocks run out the newest gives way, keeps its tokens, and is the first to be admitted again."""
    engine = make_engine(num_blocks=8, max_num_seqs=4)
    for name in ("a", "b", "c"):
        engine.scheduler.add(make_request(name, [1, 2, 3, 4, 5], 20))
    order = []
    texts: dict[str, list[int]] = {}
    while engine.scheduler.has_work:
        output = engine.step()
        for result in output.outputs:
            texts.setdefault(result.request_id, []).extend(result.new_token_ids)
            if result.finish_reason:
                order.append(result.request_id)
        running = [request.request_id for request in engine.scheduler.running]
        assert running == sorted(running)
    assert sum(step.num_preempted for step in steps_of(engine)) >= 2
    assert order == ["a", "b", "c"]
    assert texts == {name: generate([1, 2, 3, 4, 5], 20) for name in "abc"}
    assert [r for step in steps_of(engine) for r in step.first_scheduled] == ["a", "b", "c"]


def test_only_what_is_granted_is_reserved() -> None:
    """Without speculation a request holds blocks for its tokens and no more; with k, for k more in that step only."""
    for k, blocks in ((0, 2), (3, 3)):
        engine = make_engine(RandomPolicy(fixed_k=k, proposer="draft"))
        engine.scheduler.add(make_request("a", [1] * 6, 20))
        engine.step()
        assert len(engine.scheduler.running[0].block_table) == 2
        plan = engine.scheduler.schedule()
        assert len(plan.scheduled[0].block_table) == blocks
        assert plan.num_tokens == 1 + k


def test_speculation_never_preempts_and_never_outgrows_the_budget() -> None:
    """With no free block and a full budget, k is cut to what is there."""
    engine = make_engine(
        RandomPolicy(fixed_k=8, proposer="draft"), num_blocks=4, max_num_seqs=2, max_num_batched_tokens=8
    )
    for name in ("a", "b"):
        engine.scheduler.add(make_request(name, [1, 2, 3], 5))
    texts = run(engine)
    assert texts == {name: generate([1, 2, 3], 5) for name in "ab"}
    assert all(step.num_preempted == 0 for step in steps_of(engine))
    assert max(step.num_tokens for step in steps_of(engine)) == 8


def test_the_draft_is_fed_its_prompt_only_when_it_drafts() -> None:
    """Catch-up is lazy: nothing before the first draft, then all that is missing at once, then a token or two."""
    policy = RandomPolicy(fixed_k=0, proposer="draft")
    engine = make_engine(policy)
    engine.scheduler.add(make_request("a", list(range(20)), 30))
    for _ in range(4):
        engine.step()
    assert isinstance(engine.proposer, IntegerProposer)
    assert engine.proposer.num_fed_tokens == engine.proposer.num_forwards == 0
    policy.fixed_k = 4
    lags = []
    while engine.scheduler.has_work:
        engine.step()
        lags.append([c.draft_lag_tokens for c in policy.states[-1].candidates])
    assert lags[0] == [24]
    assert {lag for step in lags[1:] for lag in step} == {1, 2}


def test_feeding_drafts_stays_within_the_budget() -> None:
    """Prompts are fed to the draft model one after another when together they exceed a step's budget."""
    engine = make_engine(RandomPolicy(fixed_k=2, proposer="draft"), max_num_batched_tokens=32)
    for i, name in enumerate("abc"):
        engine.scheduler.add(make_request(name, [i] * 20, 12))
    texts = run(engine)
    assert texts == {name: generate([i] * 20, 12) for i, name in enumerate("abc")}
    fed = [sum(len(s.catchup_token_ids) for s in step.scheduled) for step in steps_of(engine)]
    assert max(fed) <= 32
    assert sum(fed) > 60


def test_a_request_may_refuse_or_bound_speculation() -> None:
    """Mode off gets no slots and no draft; max_tokens is a ceiling; the last token needs no guess after it."""
    policy = RandomPolicy(fixed_k=8, proposer="draft")
    engine = make_engine(policy)
    for name, wish in (("off", SpeculationParams("off")), ("two", SpeculationParams("auto", 2))):
        request = make_request(name, [1, 2, 3], 10)
        request.speculation = wish
        engine.scheduler.add(request)
    engine.scheduler.add(make_request("last", [1, 2, 3], 2))
    engine.step()
    engine.step()
    off, two, last = policy.states[-1].candidates
    assert (off.max_speculative_tokens, off.draft_lag_tokens) == (0, None)
    assert (two.max_speculative_tokens, last.max_speculative_tokens) == (2, 0)


def test_lookup_is_offered_with_its_evidence() -> None:
    """A repeated passage is offered with its match length, carried out, and reported back with it."""
    policy = RandomPolicy(fixed_k=3, proposer="lookup")
    engine = make_engine(policy, max_model_len=256)
    engine.scheduler.add(make_request("a", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4], 200))
    run(engine)
    offers = [c for state in policy.states for c in state.candidates if c.lookup_tokens]
    outcomes = [o for outcome in policy.observed for o in outcome.outcomes]
    assert len(offers) == len(outcomes) > 0
    assert [c.lookup_match_tokens for c in offers] == [o.lookup_match_tokens for o in outcomes]


def test_where_speculation_is_off_nobody_looks_anything_up() -> None:
    """The policy `off` pays for no index; a request that fixes its own k still has one."""
    policy = RandomPolicy(fixed_k=3, proposer="lookup", settings=PolicySettings(policy="off"))
    engine = make_engine(policy)
    for name, mode in (("auto", "auto"), ("fixed", "fixed")):
        request = make_request(name, [1, 2, 1, 2, 1, 2], 30)
        request.speculation = SpeculationParams(mode)  # type: ignore[arg-type]
        engine.scheduler.add(request)
    run(engine)
    assert {o.request_id for outcome in policy.observed for o in outcome.outcomes} <= {"fixed"}
    assert all(c.lookup_tokens == 0 for s in policy.states for c in s.candidates if c.request_id == "auto")


@settings(max_examples=60, deadline=None)
@given(k=st.integers(0, 8), min_tokens=st.integers(0, 12), stops=st.sets(st.integers(0, 19), max_size=5))
def test_nothing_past_a_stop_is_kept_or_counted(k: int, min_tokens: int, stops: set[int]) -> None:
    """Tokens are judged one by one: the text ends at the first stop after min_tokens, and so do all accounts."""
    policy = RandomPolicy(fixed_k=k, proposer="draft")
    engine = make_engine(policy)
    request = make_request("a", [7, 8], 40, stop_token_ids=frozenset(stops), min_tokens=min_tokens)
    engine.scheduler.add(request)
    endings, accepted = [], 0
    while engine.scheduler.has_work:
        output = engine.step()
        assert output.stats is not None
        accepted += sum(output.stats.accepted_by_proposer.values())
        endings += [result.finish_reason for result in output.outputs]
    plain = generate([7, 8], 40)
    ends = [i for i, token in enumerate(plain, 1) if i > min_tokens and token in stops]
    expected = plain[: ends[0]] if ends else plain
    assert request.output_token_ids == expected
    assert request.finish_reason == endings[-1] == ("stop" if ends else "length")
    assert sum(o.tokens_kept for o in policy.observed) == len(expected)
    outcomes = [o for outcome in policy.observed for o in outcome.outcomes]
    assert sum(o.num_accepted for o in outcomes) == accepted <= len(expected)
    # When the end is a drafted token, those drafted behind it are neither accepted nor rejected.
    last = policy.observed[-1]
    assert all(o.num_accepted in (o.num_drafted, last.tokens_kept - 1) for o in last.outcomes)


def test_eos_ends_a_request_unless_ignored() -> None:
    """The end-of-sequence token ends a text like a stop token; `ignore_eos` lets it pass."""
    plain = generate([7, 8], 10)
    for ignore_eos, expected in ((False, plain[: plain.index(plain[3]) + 1]), (True, plain)):
        engine = make_engine()
        request = make_request("a", [7, 8], 10, ignore_eos=ignore_eos)
        request.eos_token_ids = frozenset({plain[3]})
        engine.scheduler.add(request)
        assert run(engine)["a"] == expected


def test_finish_truncates_and_frees() -> None:
    """Whoever reads text may end a request at an earlier token; its blocks are free at once."""
    engine = make_engine()
    request = make_request("a", [1, 2], 10)
    engine.scheduler.add(request)
    for _ in range(4):
        engine.step()
    engine.scheduler.finish("a", 2, "stop")
    assert request.output_token_ids == generate([1, 2], 2)
    assert request.finish_reason == "stop"
    engine.scheduler.finish("a", 1, "stop")
    engine.scheduler.check_idle()


def test_limits_bound_admission_and_prefill() -> None:
    """The policy's limits and its settings hold back newcomers and their prompts, never those who run."""
    policy = RandomPolicy(fixed_k=0, bounds=Limits(max_running_requests=2, max_prefill_tokens=3))
    engine = make_engine(policy)
    for i, name in enumerate("abc"):
        engine.scheduler.add(make_request(name, [i] * 10, 30))
    engine.step()
    assert [len(s.token_ids) for s in steps_of(engine)[0].scheduled] == [10, 10]
    policy.bounds = Limits(max_prefill_tokens=3)
    engine.step()
    assert [len(s.token_ids) for s in steps_of(engine)[1].scheduled] == [1, 1, 3]
    policy.settings = PolicySettings(max_running_requests=1)
    engine.scheduler.add(make_request("d", [3] * 10, 30))
    engine.step()
    assert len(engine.scheduler.running) == 3


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "param", "says"),
    [(0, 5, "prompt", "empty"), (128, 1, "prompt", "127"), (100, 29, "max_tokens", "28"), (4, 0, "max_tokens", "1")],
)
def test_what_can_never_fit_is_refused(prompt: int, max_tokens: int, param: str, says: str) -> None:
    """The refusal names the field at fault and what would be accepted."""
    with pytest.raises(InvalidRequestError, match=says) as refusal:
        make_engine().scheduler.add(make_request("a", [1] * prompt, max_tokens))
    assert refusal.value.param == param


def test_what_just_fits_runs_to_its_end() -> None:
    """A request that needs the whole cache gets it, speculating or not."""
    engine = make_engine(RandomPolicy(fixed_k=4, proposer="draft"), num_blocks=4)
    engine.scheduler.add(make_request("b", [1] * 3, 4))
    engine.scheduler.add(make_request("a", [1] * 10, 7))
    assert run(engine) == {"a": generate([1] * 10, 7), "b": generate([1] * 3, 4)}
    with pytest.raises(InvalidRequestError, match="KV cache"):
        engine.scheduler.add(make_request("c", [1] * 10, 8))


def test_an_id_in_use_is_refused() -> None:
    """Two requests of one name cannot be told apart."""
    engine = make_engine()
    engine.scheduler.add(make_request("a", [1], 4))
    with pytest.raises(InvalidRequestError, match="already"):
        engine.scheduler.add(make_request("a", [1], 4))


def test_the_hosts_work_does_not_grow_with_the_context() -> None:
    """A decode plan holds the newest token and the block table by reference, however long the context."""
    engine = make_engine(RandomPolicy(fixed_k=2, proposer="draft"), max_model_len=400, num_blocks=100)
    engine.scheduler.add(make_request("a", [1] * 300, 50))
    for _ in range(12):
        engine.step()
    plan = engine.scheduler.schedule()
    assert len(plan.scheduled[0].token_ids) == 1
    assert len(plan.scheduled[0].catchup_token_ids) <= 2
    assert plan.scheduled[0].block_table is engine.scheduler.running[0].block_table
