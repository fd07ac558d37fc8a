"""A prefix is computed once, found by all who begin with it, and never confused with another."""

from dataclasses import dataclass, replace
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy, generate
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.scheduling.block_pool import BlockPool
from smartspec.scheduling.prefix_cache import PrefixCache, extend_keys
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

CONFIG = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, block_size=4)


def make_request(name: str, prompt: list[int], max_tokens: int = 8, salt: str = "") -> Request:
    """A request that arrived at time 0."""
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens), 0, 0.0, cache_salt=salt)


@dataclass
class Served:
    """An engine over the integer model whose draft must have seen all that the target has."""

    scheduler: Scheduler
    engine: Engine[dict[str, tuple[int, ...]]]
    proposer: IntegerProposer
    runner: IntegerRunner
    policy: RandomPolicy

    def run(self, *requests: Request) -> dict[str, list[int]]:
        """Serve *requests*, which come together, to their end; their texts."""
        texts: dict[str, list[int]] = {}
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.has_work:
            for output in self.engine.step().outputs:
                texts.setdefault(output.request_id, []).extend(output.new_token_ids)
        self.scheduler.check_idle()
        return texts

    @property
    def num_computed(self) -> int:
        """Tokens that went through the target, guesses aside."""
        return sum(len(scheduled.token_ids) for step in self.runner.steps for scheduled in step.scheduled)

    @property
    def num_hits(self) -> int:
        """Tokens that newcomers found."""
        return sum(step.prefix_hit_tokens for step in self.runner.steps)


def serve(policy: RandomPolicy | None = None, config: SchedulerConfig = CONFIG, num_blocks: int = 64) -> Served:
    """An engine with nothing in its cache."""
    policy = policy or RandomPolicy(fixed_k=0)
    runner = IntegerRunner(config.block_size)
    proposer = IntegerProposer(config.block_size, target_cache=runner.cache)
    scheduler = Scheduler(config, policy, num_blocks=num_blocks, max_model_len=128, proposers=("draft", "lookup"))
    return Served(scheduler, Engine(scheduler, proposer, runner, lambda: 0.0), proposer, runner, policy)


# -- keys -----------------------------------------------------------------------------------------------------------


def keys_of(tokens: list[int], size: int = 4, salt: str = "") -> list[bytes]:
    """The keys of all full blocks of *tokens*."""
    keys: list[bytes] = []
    extend_keys(keys, tokens, size, len(tokens) // size, salt)
    return keys


@given(st.lists(st.integers(0, 2**40), max_size=40), st.lists(st.integers(0, 2**40), max_size=40))
def test_keys_are_equal_as_far_as_the_texts_are(left: list[int], right: list[int]) -> None:
    """Two blocks have one key exactly when they and all before them are equal."""
    for index, (a, b) in enumerate(zip(keys_of(left), keys_of(right), strict=False)):
        assert (a == b) == (left[: 4 * index + 4] == right[: 4 * index + 4])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 15))
def test_keys_grow_with_the_text(tokens: list[int], part: int) -> None:
    """Keys made bit by bit are those made at once."""
    keys: list[bytes] = []
    for end in range(0, len(tokens) // 4 + 1, part):
        extend_keys(keys, tokens, 4, end, "salt")
    assert keys == keys_of(tokens, salt="salt")[: len(keys)]


def test_a_salt_sets_texts_apart() -> None:
    """Texts under different salts share no key, and no salt makes up another text's chain."""
    tokens = list(range(8))
    plain, salted = keys_of(tokens), keys_of(tokens, salt="s")
    assert not set(plain) & set(salted)
    root = blake2b(b"", digest_size=32, person=b"cache_salt").digest()
    assert blake2b(root, digest_size=32).digest() not in plain


# -- the pool underneath --------------------------------------------------------------------------------------------


class SharedBlocks(RuleBasedStateMachine):
    """Texts of two letters come, grow and go over a pool that is too small for them; memory is what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(num_blocks=10, block_size=2)
        self.prefixes = PrefixCache(self.pool, enabled=True)
        self.live: list[Request] = []
        self.memory: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.draft_memory: dict[int, tuple[str, tuple[int, ...]]] = {}

    def write(self, memory: dict[int, tuple[str, tuple[int, ...]]], request: Request, begin: int, end: int) -> None:
        """The tokens from *begin* to *end* are computed: a block then holds the text up to its end."""
        for index in range(begin // 2, -(-end // 2)):
            tokens = tuple(request.token_ids[: min(end, 2 * index + 2)])
            memory[request.block_table[index]] = (request.cache_salt, tokens)

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9), salt=st.sampled_from(["", "", "x"]))
    def arrive(self, prompt: list[int], salt: str) -> None:
        """A text comes, shares what it finds and computes the rest, if there is room."""
        request = make_request(str(len(self.live)), prompt, salt=salt)
        found = self.prefixes.find(request)
        assert 2 * len(found) < len(prompt)
        missing = self.pool.blocks_for(len(prompt)) - self.pool.num_held(found)
        if missing > self.pool.num_free:
            return
        self.prefixes.take(request, found)
        assert self.pool.grow(request.block_table, len(prompt))
        self.compute(request)
        self.live.append(request)

    def compute(self, request: Request) -> None:
        """The target computes all tokens that are not."""
        self.write(self.memory, request, request.num_computed_tokens, request.num_tokens)
        request.num_computed_tokens = request.num_tokens
        self.prefixes.publish(request, request.num_tokens)

    @rule(index=st.integers(0, 20), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def say(self, index: int, tokens: list[int]) -> None:
        """A text grows by *tokens*, if there is room."""
        if self.live:
            request = self.live[index % len(self.live)]
            if self.pool.grow(request.block_table, request.num_tokens + len(tokens)):
                request.token_ids += tokens
                self.compute(request)

    @rule(index=st.integers(0, 20))
    def draft(self, index: int) -> None:
        """The draft sees the whole text, as far as it has not."""
        if self.live:
            request = self.live[index % len(self.live)]
            self.prefixes.advance_draft(request)
            self.write(self.draft_memory, request, request.num_draft_computed_tokens, request.num_tokens)
            self.prefixes.set_draft_progress(request, request.num_tokens)

    @rule(index=st.integers(0, 20))
    def leave(self, index: int) -> None:
        """A text goes."""
        if self.live:
            self.prefixes.drop(self.live.pop(index % len(self.live)))

    @invariant()
    def memory_is_every_texts_own(self) -> None:
        """What a text's blocks hold is that text, salt and all before included: shared by equals, evicted from none."""
        for request in self.live:
            for memory, progress in (
                (self.memory, request.num_computed_tokens),
                (self.draft_memory, request.num_draft_computed_tokens),
            ):
                for index, block in enumerate(request.block_table[: progress // 2]):
                    assert memory[block] == (request.cache_salt, tuple(request.token_ids[: 2 * index + 2]))

    @invariant()
    def blocks_add_up(self) -> None:
        """Every block is held by someone or free, and as often as tables name it."""
        named = [block for request in self.live for block in request.block_table]
        assert len(set(named)) + self.pool.num_free == self.pool.num_blocks
        assert self.pool.usage == pytest.approx(len(set(named)) / self.pool.num_blocks)
        assert [self.pool._holders[block] for block in range(10)] == [named.count(block) for block in range(10)]
        assert self.pool.num_published <= self.pool.num_blocks
        private = [block for request in self.live for block in request.block_table[request.num_published_blocks :]]
        assert len(private) == len(set(private))

    def teardown(self) -> None:
        """In the end everything is free."""
        for request in self.live:
            self.prefixes.drop(request)
        self.pool.check_idle()


TestSharedBlocks = SharedBlocks.TestCase
TestSharedBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_longest_unused_end_goes_first() -> None:
    """Memory is taken from blocks without a key, then from the oldest text, and there from its end."""
    pool = BlockPool(num_blocks=6, block_size=1)
    prefixes = PrefixCache(pool, enabled=True)
    old, new = make_request("old", [1, 2]), make_request("new", [3, 4, 5])
    for request in (old, new):
        pool.grow(request.block_table, request.num_tokens)
        prefixes.publish(request, request.num_tokens)
    first, second = old.block_table
    table: list[int] = []
    pool.grow(table, 1)
    (private,) = table
    prefixes.drop(old)
    prefixes.drop(new)
    pool.shrink(table, 0)
    pool.grow(table, 2)
    assert table == [private, second]
    assert len(prefixes.find(make_request("again", [3, 4, 5, 6]))) == 3
    pool.grow(table, 3)
    assert table[2] == first


def test_the_drafts_bit_goes_with_the_contents() -> None:
    """A block that was filled for one text is not filled for the next one in it."""
    pool = BlockPool(num_blocks=1, block_size=2)
    table: list[int] = []
    pool.grow(table, 2)
    pool.fill_draft(table[0])
    assert pool.is_draft_filled(0)
    pool.shrink(table, 0)
    pool.grow(table, 2)
    assert not pool.is_draft_filled(0)
    pool.shrink(table, 0)
    for refused in (pool.fill_draft, lambda block: pool.publish(block, b"key")):
        with pytest.raises(ValueError, match="free"):
            refused(0)


# -- the scheduler --------------------------------------------------------------------------------------------------


families = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 40), st.lists(st.integers(0, 4), max_size=6)), min_size=1, max_size=10
)


@settings(max_examples=150, deadline=None)
@given(
    family=families,
    max_tokens=st.integers(1, 20),
    num_blocks=st.integers(17, 64),
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 64),
    seed=st.integers(0, 1000),
    gap=st.integers(0, 6),
    abort=st.booleans(),
)
def test_hits_change_no_token(
    family: list[tuple[int, int, list[int]]],
    max_tokens: int,
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    seed: int,
    gap: int,
    abort: bool,
) -> None:
    """Requests that begin alike get the model's text, and the draft knows what the target knows: under chunking,
    preemption, eviction, cancellation and any k."""
    config = replace(CONFIG, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    served = serve(RandomPolicy(seed=seed), config, num_blocks)
    prompts = [([root] * length + tail)[:44] for root, length, tail in family]
    texts: dict[str, list[int]] = {}
    waiting = [make_request(str(i), prompt, max_tokens) for i, prompt in enumerate(prompts)]
    for step in range(5000):
        if waiting and step % (gap + 1) == 0:
            served.scheduler.add(waiting.pop(0))
        if not waiting and not served.scheduler.has_work:
            break
        for output in served.engine.step().outputs:
            texts.setdefault(output.request_id, []).extend(output.new_token_ids)
        if abort and "0" in texts:
            served.scheduler.abort("0")
    served.scheduler.check_idle()
    for i, prompt in enumerate(prompts):
        expected, text = generate(prompt, max_tokens), texts[str(i)]
        assert text == (expected[: len(text)] if abort and i == 0 else expected)
    assert all(0 < step.num_tokens <= max_num_batched_tokens for step in served.runner.steps)


def test_a_known_prefix_is_not_computed_again() -> None:
    """A later prompt pays for what is new in it, and one that is known altogether for its last block."""
    served = serve()
    prompt = list(range(20))
    served.run(make_request("a", prompt, 1))
    assert (served.num_computed, served.num_hits) == (20, 0)
    served.run(make_request("b", [*prompt[:15], 99, 98], 1))
    assert (served.num_computed, served.num_hits) == (20 + 5, 12)
    served.run(make_request("c", prompt, 1))
    assert (served.num_computed, served.num_hits) == (25 + 4, 12 + 16)
    assert [step.prefix_query_tokens for step in served.runner.steps] == [20, 17, 20]


def test_an_answer_is_a_prefix_of_the_next_turn() -> None:
    """Generated tokens are found like prompts, accepted guesses among them."""
    served = serve(RandomPolicy(fixed_k=4, proposer="draft"))
    prompt = list(range(10))
    text = served.run(make_request("a", prompt, 20))["a"]
    again = make_request("b", [*prompt, *text, 7, 7], 4)
    assert served.run(again)["b"] == generate(again.prompt_token_ids, 4)
    assert again.num_cached_tokens == 28  # 29 of 30 tokens were computed: the newest never is


def test_requests_that_come_together_compute_their_prefix_once() -> None:
    """Of eight in one step the first computes the prefix, and the seven beside it share its blocks."""
    served = serve()
    requests = [make_request(str(i), [*range(20), i, i], 6) for i in range(8)]
    for request in requests:
        served.scheduler.add(request)
    served.engine.step()
    assert len(served.scheduler.running) == 8
    assert served.num_computed == 22 + 7 * 2
    assert len({request.block_table[0] for request in requests}) == 1
    assert served.scheduler.pool.usage == (5 + 8) / 64
    assert served.run() == {r.request_id: generate(r.prompt_token_ids, 6)[1:] for r in requests}


def test_cached_blocks_are_free_for_whoever_needs_them() -> None:
    """What nobody holds counts as free for admission and usage, however full the cache is; then it is evicted."""
    served = serve(num_blocks=8)
    served.run(make_request("a", [1] * 24, 8))
    pool = served.scheduler.pool
    assert (pool.num_free, pool.usage) == (8, 0.0)
    assert pool.num_published == 7
    assert served.run(make_request("b", [2] * 24, 8))["b"] == generate([2] * 24, 8)
    served.run(again := make_request("c", [1] * 24, 8))
    assert again.num_cached_tokens == 0


def test_hits_let_in_who_would_not_fit() -> None:
    """A prompt whose blocks a running request holds needs room only for its own rest."""
    served = serve(num_blocks=12)
    served.scheduler.add(make_request("a", [1] * 28, 6))
    served.engine.step()
    served.scheduler.add(make_request("b", [*[1] * 28, 2], 4))
    served.scheduler.add(make_request("c", [*[3] * 28, 2], 4))
    served.engine.step()
    assert [request.request_id for request in served.scheduler.running] == ["a", "b"]


def test_the_preempted_find_their_own_blocks() -> None:
    """A request that comes back computes little more than what was taken from it, and is counted once."""
    computed = {}
    for prefix_caching in (True, False):
        served = serve(config=replace(CONFIG, prefix_caching=prefix_caching), num_blocks=20)
        requests = [make_request(str(i), [i] * 20, 24) for i in range(3)]
        assert served.run(*requests) == {str(i): generate([i] * 20, 24) for i in range(3)}
        assert sum(step.num_preempted for step in served.runner.steps) > 0
        computed[prefix_caching] = served.num_computed
        assert sum(step.prefix_query_tokens for step in served.runner.steps) == 60 * prefix_caching
        assert served.num_hits == sum(request.num_cached_tokens for request in requests) == 0
    once = 3 * 43
    assert computed[True] - once < (computed[False] - once) / 2


def test_the_draft_lags_behind_a_prefix_it_has_not_seen() -> None:
    """What the target knows and the draft does not is priced as lag, fed once, and then skipped by the next."""
    policy = RandomPolicy(fixed_k=0, proposer="draft")
    served = serve(policy)
    prompt = list(range(20))
    served.run(make_request("a", [*prompt, 1], 4))
    lags = []
    policy.fixed_k = 3
    for name in ("b", "c"):
        policy.states.clear()
        request = make_request(name, [*prompt, 2], 8)
        assert served.run(request)[name] == generate([*prompt, 2], 8)
        assert request.num_cached_tokens == 20
        lags.append(next(c.draft_lag_tokens for state in policy.states for c in state.candidates))
    assert lags == [22, 2]


def test_the_draft_is_fed_a_shared_prefix_once() -> None:
    """Of many that wait for a prefix to be fed to the draft, those a step later go on behind it."""
    served = serve(RandomPolicy(fixed_k=2, proposer="draft"), replace(CONFIG, max_num_batched_tokens=48))
    requests = [make_request(str(i), [*range(40), i, i], 12) for i in range(6)]
    texts = served.run(*requests)
    assert texts == {r.request_id: generate(r.prompt_token_ids, 12) for r in requests}
    assert served.proposer.num_fed_tokens < 43 + 5 * 40


def test_acceptance_does_not_fall_with_hits() -> None:
    """The same request is guessed as well over a found prefix as over a computed one, drafted before or not."""
    accepted = {}
    for name, k_before in (("computed", None), ("not drafted", 0), ("drafted", 4)):
        policy = RandomPolicy(fixed_k=k_before, proposer="draft")
        served = serve(policy)
        if k_before is not None:
            served.run(make_request("before", [*range(30), 1], 12))
        policy.fixed_k = 4
        policy.observed.clear()
        served.run(request := make_request("a", [*range(30), 2], 40))
        assert request.num_cached_tokens == (0 if k_before is None else 28)
        accepted[name] = [(o.num_drafted, o.num_accepted) for step in policy.observed for o in step.outcomes]
    assert accepted["computed"] == accepted["not drafted"] == accepted["drafted"]
    assert sum(kept for _, kept in accepted["drafted"]) > 10


def test_salts_share_only_among_equals() -> None:
    """A prompt computed under one salt is nobody's under another: its time does not tell that it was asked."""
    served = serve()
    cached = []
    for name, salt in (("a", "x"), ("b", "y"), ("c", ""), ("d", "x")):
        served.run(request := make_request(name, [1] * 20, 2, salt))
        cached.append(request.num_cached_tokens)
    assert cached == [0, 0, 0, 16]


def test_off_means_off() -> None:
    """Without prefix caching nothing is found, hashed or counted."""
    served = serve(config=replace(CONFIG, prefix_caching=False))
    for name in "ab":
        served.run(request := make_request(name, [1] * 20, 4))
        assert (request.num_cached_tokens, request.block_keys) == (0, [])
    assert served.num_hits == sum(step.prefix_query_tokens for step in served.runner.steps) == 0
    assert served.scheduler.pool.num_published == 0
