"""The compiled loops say what the plain formulas say, to the last digits, whatever has happened before."""

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import policy_reference as reference
from smartspec import policy
from smartspec.policy.acceptance import AcceptanceModel, row_of
from smartspec.policy.chances import DRAFT, LOOKUP, PROPOSERS, VERIFIERS
from smartspec.policy.columns import by_letter, columns_of
from smartspec.policy.costs import Costs, costs_of
from smartspec.policy.features import HALF_OCTAVES, LINE, Regressors
from smartspec.policy.goodput import Problem, optimise
from smartspec.policy.kalman import deviation, learn
from smartspec.policy.online import OnlineLatencyModel
from smartspec.policy.regression import Coefficients
from smartspec.policy.scan import _ascending
from smartspec.policy.types import BatchState, Candidate, RequestOutcome, StepFeatures, StepSeconds
from smartspec.policy.uniform import evaluate
from smartspec.policy.worth import long_run_worth

SEEDS = st.integers(0, 1 << 32)


def close(value: object) -> object:
    """Equal but for the order of a sum."""
    return pytest.approx(value, rel=1e-12, abs=1e-14)


def trained(regressors: Regressors, random: np.random.Generator) -> OnlineLatencyModel:
    """A time model after some steps on a device of its own."""
    model = OnlineLatencyModel(regressors)
    speed = random.uniform(0.1, 3.0)
    for _ in range(40):
        tokens, depth = int(np.exp(random.uniform(0, 7))), int(random.integers(0, 4))
        features = StepFeatures(tokens, 100 * tokens, tokens, 0, (tokens,) * depth, 90 * tokens, 2 * tokens)
        parts = random.uniform(0.5, 1.5, 3) * (0.001 * depth + 1e-9, 0.02 + 0.001 * tokens, 0.001)
        model.observe(features, StepSeconds(*(speed * parts).tolist()))
    return model


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_the_filter_is_the_matrices(seed: int) -> None:
    """Each step of a history with outliers, shifts and coefficients that stand at zero."""
    random = np.random.default_rng(seed)
    kinship = 0.8 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    known = Coefficients(random.uniform(0, 0.02, 6) * (random.random(6) < 0.7), random.uniform(0.001, 0.02, 6), kinship)
    for step in range(60):
        features = np.array([1.0, *random.exponential(5.0, 5) * (random.random(5) < 0.6)])
        seconds = float(random.choice([1e-4, 0.02, 0.3])) * (1 + (step > 30)) * (1.0 + float(features[1]))
        plain = reference.Filter(known.mean, known.covariance, known.scale, kinship, known.noise, known.streak)
        assert learn(known, features, seconds) == close(plain.learn(features, seconds))
        assert known.mean == close(plain.mean)
        assert known.covariance == pytest.approx(plain.covariance, rel=1e-10, abs=1e-15)
        assert (known.noise, known.streak) == (close(plain.noise), plain.streak)
        variance = max(0.0, float(features @ known.covariance @ features))
        assert deviation(known, features) == pytest.approx(variance**0.5, rel=1e-6, abs=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=SEEDS, knots=st.sampled_from([HALF_OCTAVES, LINE]), buckets=st.sampled_from([(), (1, 4, 16, 200)]))
def test_tables_are_the_time_model(seed: int, knots: tuple[int, ...], buckets: tuple[int, ...]) -> None:
    """Costs by nodes and by rows of a draft forward, with and without prefill in the step."""
    random = np.random.default_rng(seed)
    model = trained(Regressors(knots, buckets), random)
    num, prefill = int(random.integers(1, 30)), int(random.choice([0, 100]))
    batch = BatchState((Candidate("r", 0, 8, "greedy"),) * num, prefill, 3 * prefill, int(prefill > 0))
    costs, nodes = costs_of(batch, model, 70 * num, 300), np.arange(301)
    whole = {"context": 70 * num + 3 * prefill, "requests": num + (prefill > 0), "prefill": prefill}
    assert costs.target == close(model.target_curve(nodes + num + prefill, **whole))
    alone = model.target_curve(np.array([num]), context=70 * num, requests=num, prefill=0)[0]
    assert costs.sunk == pytest.approx(costs.target[0] - alone if prefill else 0.0, abs=1e-14)
    assert costs.forwards(np.ones(5999)) == close(model.draft_curve(np.arange(6001)))
    assert costs.forward_seconds(2.7) == close(model.draft_curve(np.array([2.7]))[0])


def outcomes_of(random: np.random.Generator) -> list[RequestOutcome]:
    """What a step may bring: some requests of each verifier, by either proposer."""
    found = []
    for name in random.permutation(12)[: int(random.integers(0, 12))].tolist():
        drafted, by_lookup = int(random.integers(1, 9)), bool(random.random() < 0.3)
        found.append(
            RequestOutcome(
                f"r{name}", "lookup" if by_lookup else "draft", VERIFIERS[name % 3], drafted,
                int(random.integers(0, drafted + 1)), int(random.integers(1, 14)) if by_lookup else 0,
            )
        )  # fmt: skip
    return found


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_evidence_is_counted_by_the_book(seed: int) -> None:
    """Rates of all pairs, and chances of all requests, after any history."""
    random = np.random.default_rng(seed)
    model, plain = AcceptanceModel(), reference.Evidence()
    for _ in range(40):
        outcomes, kept = outcomes_of(random), int(random.integers(0, 60))
        model.observe(outcomes, kept)
        plain.observe(outcomes, kept)
    assert model.rates == close(plain.rates())
    names = [f"r{i}" for i in range(14)]
    verifiers, matches = np.arange(14) % 3, random.integers(0, 14, 14)
    drafts, copies = random.integers(0, 9, (2, 14))
    found = model.survival(verifiers, matches, model.slots_of(names), drafts, copies, 6)
    for proposer, caps, chances in ((DRAFT, drafts, found[0]), (LOOKUP, copies, found[1])):
        between = model._own.spread(proposer) ** 2
        for i, name in enumerate(names):
            row = row_of(PROPOSERS[proposer], VERIFIERS[verifiers[i]], matches[i])
            assert chances[i] == close(plain.survival(PROPOSERS[proposer], row, name, between, caps[i], 6))


INTEGERS = st.one_of(*(st.integers(-(1 << bits), (1 << bits) - 1) for bits in (4, 7, 15, 31, 63)))
CANDIDATES = st.builds(
    Candidate, st.text(max_size=300), INTEGERS, INTEGERS, st.sampled_from(VERIFIERS),
    draft_lag_tokens=st.none() | INTEGERS,
)  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(candidates=st.lists(CANDIDATES, min_size=1, max_size=40))
def test_columns_are_the_fields(candidates: list[Candidate]) -> None:
    """Integers of all sizes as they are, nothing as -1, texts by their first byte."""
    found = columns_of(candidates).tolist()
    assert found[1] == [c.context_tokens for c in candidates]
    assert found[2] == [c.max_speculative_tokens for c in candidates]
    assert found[0] == [ord(c.request_id.encode()[:1] or b"\0") for c in candidates]
    assert found[3] == [ord(c.verifier[0]) for c in candidates]
    assert found[5] == [-1 if c.draft_lag_tokens is None else c.draft_lag_tokens for c in candidates]


@pytest.mark.parametrize("num", [1, 15, 16, 70_000])
def test_columns_are_as_long_as_the_rows(num: int) -> None:
    """However the encoder writes how many there are."""
    found = columns_of([RequestOutcome("r", "lookup", "greedy", 300 + i, i % 7) for i in range(num)])
    assert found.shape == (6, num)
    assert (found[3] == 300 + np.arange(num)).all()


def test_what_is_no_number_is_refused() -> None:
    """A field that columns cannot hold is an error, not a wrong number; so are texts that begin alike."""
    with pytest.raises(ValueError, match="no integer"):
        columns_of([RequestOutcome("r", "draft", "greedy", 3.5, 1)])
    with pytest.raises(ValueError, match="first letters"):
        by_letter({"on": 1, "off": 0})


def case(random: np.random.Generator, num: int) -> tuple[Problem, Costs]:
    """A batch of *num* requests with some of everything, on a device with stairs."""
    depth = int(random.integers(1, 9))
    draft, lookup = np.cumprod(random.uniform(0.3, 1.0, (2, num, depth)), axis=2)
    draft *= random.random((num, 1)) < 0.8
    lookup *= random.random((num, 1)) < 0.4
    nodes, rows = np.arange(max(2, depth) * num + 1), np.array([1.0, 4.0, 64.0, 128.0])
    stairs = 0.02 + random.uniform(0, 0.002) * nodes + random.uniform(0, 0.02) * np.ceil(nodes / 7)
    costs = Costs(
        stairs, np.array([rows, random.uniform(0, 0.003) + random.uniform(0, 2e-4) * rows]),
        float(random.choice([0.0, 1e-7])), float(random.choice([0.0, 0.01])),
    )  # fmt: skip
    forced = np.where(random.random(num) < 0.1, random.integers(0, depth + 1, num), -1)
    problem = Problem(
        draft, lookup, random.choice([1.0, 2.0, 20.0], num), random.uniform(10, 500, num), forced,
        random.uniform(0.5, 1.5, num), int(random.choice([num, 1 << 20])),
        random.choice([None, 0.02, 0.05]),
    )  # fmt: skip
    return problem, costs


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=SEEDS, num=st.integers(1, 24), drafting=st.booleans())
def test_plans_are_those_of_the_lists(seed: int, num: int, drafting: bool) -> None:
    """The same lengths, proposers and figures, with torn requests, targets, forced lengths, good and bad guesses."""
    random = np.random.default_rng(seed)
    problem, costs = case(random, num)
    rate = float(random.choice([0.1, 30.0, 1e4]))
    found, plain = (
        search(problem, costs, rate=rate, margin=0.01, drafting=drafting) for search in (optimise, reference.optimise)
    )
    assert found.num_tokens.tolist() == plain.num_tokens.tolist()
    assert found.uses_draft.tolist() == plain.uses_draft.tolist()
    figures = [(p.tokens, p.worth, p.seconds, p.goodput, p.tpot_seconds) for p in (found, plain)]
    assert figures[0] == close(figures[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, num=st.integers(1, 24))
def test_a_plan_s_price_and_worth_are_the_sums(seed: int, num: int) -> None:
    """Of any lengths by any proposers; and what tokens are worth to the long run."""
    random = np.random.default_rng(seed)
    problem, costs = case(random, num)
    uses_draft = random.random(num) < 0.5
    room = np.count_nonzero(np.where(uses_draft[:, None], problem.draft, problem.lookup), axis=1)
    lengths = random.integers(0, room + 1)
    plan = evaluate(problem, costs, lengths, uses_draft)
    figures = [plan.tokens, plan.worth, plan.seconds, plan.goodput, plan.tpot_seconds]
    assert figures == close(reference.evaluate(problem, costs, lengths, uses_draft))
    worth = long_run_worth(problem.draft, problem.lookup, costs)
    assert worth == close(reference.long_run_worth(problem.draft, problem.lookup, costs))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, num=st.integers(0, 200), kind=st.sampled_from(["spread", "crowded", "few"]))
def test_buckets_sort(seed: int, num: int, kind: str) -> None:
    """Values of all sorts come in order, and equal ones in the order they came."""
    random = np.random.default_rng(seed)
    value = {
        "spread": random.uniform(-3, 1, num),
        "crowded": random.normal(0, 1e-6, num) + 1e6 * (random.random(num) < 0.02),
        "few": random.integers(0, 4, num) * 0.1,
    }[kind]
    assert _ascending(np.append(value, 0.0), num).tolist() == np.argsort(value, kind="stable").tolist()


MODULES = sorted(path for path in Path(policy.__path__[0]).glob("*.py") if "@njit" in path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_compiled_functions_use_nothing_of_other_files(path: Path) -> None:
    """numba asks only a function's own file whether the code it has on disk is up to date: a constant or function of
    another one could change unnoticed."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smartspec.policy")
        for alias in node.names
    }
    compiled = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any("njit" in ast.dump(mark) for mark in node.decorator_list)
    ]
    assert compiled
    used = {node.id for function in compiled for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert not used & imported
