"""The time model: it learns stairs, survives stragglers, follows shifts, is never negative, and travels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartspec.policy.features import LINE, Regressors
from smartspec.policy.latency import model_of, predict_seconds
from smartspec.policy.online import OnlineLatencyModel
from smartspec.policy.types import StepFeatures, StepSeconds

MEASURED = {1: 0.024, 4: 0.027, 8: 0.036, 16: 0.034, 32: 0.052, 64: 0.067, 128: 0.108, 256: 0.231}
DRAFT = {1: 0.00093, 8: 0.0013, 32: 0.0024, 128: 0.0071}


def along(points: dict[int, float], tokens: float) -> float:
    """Between measured points, in line."""
    return float(np.interp(tokens, list(points), list(points.values())))


def step(
    tokens: int, random: np.random.Generator, *, noise: float = 0.05, k: int = 0, scale: float = 1.0
) -> tuple[StepFeatures, StepSeconds]:
    """A step as the measured CPU would have run it."""
    requests = max(1, tokens // (k + 1))
    features = StepFeatures(tokens, 100 * requests, requests, draft_batch_by_depth=(requests,) * k)
    draft = k * along(DRAFT, requests)
    target = along(MEASURED, tokens) + 1e-7 * features.context_tokens
    jitter = scale * np.exp(noise * random.standard_normal(3))
    return features, StepSeconds(*(np.array([draft, target, 0.001 + 3e-5 * requests]) * jitter).tolist())


def trained(steps: int = 600, *, seed: int = 0, noise: float = 0.05, **options: float) -> OnlineLatencyModel:
    """A model after steps of all sizes."""
    model, random = OnlineLatencyModel(), np.random.default_rng(seed)
    for _ in range(steps):
        k = int(random.integers(0, 5))
        model.observe(*step(int(np.exp(random.uniform(0, np.log(256)))), random, noise=noise, k=k, **options))
    return model


def plain(tokens: int) -> StepFeatures:
    """A step of *tokens* requests without speculation."""
    return StepFeatures(tokens, 100 * tokens, tokens)


def test_stairs_are_learned() -> None:
    """From noisy steps of all sizes the measured curve is found within 8 % everywhere; no line comes near it."""
    model = trained()
    line, random = OnlineLatencyModel(Regressors(knots=LINE)), np.random.default_rng(0)
    for _ in range(600):
        line.observe(*step(int(np.exp(random.uniform(0, np.log(256)))), random))
    errors = {n: abs(model.predict(plain(n)).target / (seconds + 1e-5 * n) - 1) for n, seconds in MEASURED.items()}
    assert max(errors.values()) < 0.08, errors
    assert max(abs(line.predict(plain(n)).target / (s + 1e-5 * n) - 1) for n, s in MEASURED.items()) > 0.12
    assert model.error < 0.08
    assert not model.is_poor


def test_draft_forwards_are_counted_by_depth_and_rows() -> None:
    """Four forwards of eight rows take what four forwards of eight rows took."""
    model = trained()
    features = StepFeatures(40, 800, 8, draft_batch_by_depth=(8, 8, 8, 8))
    assert model.predict(features).draft == pytest.approx(4 * DRAFT[8], rel=0.12)
    assert model.predict(plain(8)).draft == 0.0


def test_catch_up_is_part_of_the_first_draft_forward() -> None:
    """Feeding the draft 128 tokens before it drafts costs a forward of 128 rows."""
    model, random = OnlineLatencyModel(), np.random.default_rng(0)
    for _ in range(400):
        rows = int(random.integers(1, 129))
        features = StepFeatures(2, 100, 1, draft_batch_by_depth=(1,), catchup_tokens=rows)
        model.observe(features, StepSeconds(along(DRAFT, rows), 0.025, 0.001))
    found = model.predict(StepFeatures(2, 100, 1, draft_batch_by_depth=(1,), catchup_tokens=128)).draft
    assert found == pytest.approx(DRAFT[128], rel=0.1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 512), st.integers(0, 5000), st.integers(1, 64), st.floats(1e-4, 5.0)),
        min_size=1,
        max_size=40,
    )
)
def test_coefficients_are_never_negative(observations: list[tuple[int, int, int, float]]) -> None:
    """Whatever is measured, no coefficient is negative or not a number, so more work never takes less time."""
    model = OnlineLatencyModel()
    for tokens, context, requests, seconds in observations:
        model.observe(StepFeatures(tokens, context, requests), StepSeconds(0.0, seconds, seconds / 10))
    assert all(0.0 <= value < 1e6 for value in model.coefficients().values())
    curve = model.target_curve(np.arange(1, 600), context=0, requests=1, prefill=0)
    assert (np.diff(curve) >= 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_verifying_costs_what_prompts_of_that_size_have_shown(seed: int) -> None:
    """Where large steps were prompts' alone, a verification of as many rows is not thought cheaper for being none."""
    stairs = {1: 0.010, 8: 0.014, 32: 0.031, 64: 0.050, 2048: 1.2}
    model, random = OnlineLatencyModel(), np.random.default_rng(seed)
    for number in range(2500):
        features = StepFeatures(32, 32 * 150, 32)
        if number % 48 == 0:
            prompts = int(random.integers(180, 300))
            features = StepFeatures(prompts + int(random.integers(0, 8)), 2500, 32, prefill_tokens=prompts)
        seconds = along(stairs, features.target_tokens) * math.exp(0.08 * random.standard_normal())
        model.observe(features, StepSeconds(0.0, seconds, 0.001))
    for rows in (96, 160, 192):
        predicted = model.predict(StepFeatures(rows, 32 * 150, 32)).target
        assert predicted == pytest.approx(along(stairs, rows), rel=0.06)


def test_one_straggler_does_not_move_the_model() -> None:
    """A step ten times as long, on a core that was taken away, changes predictions by less than 5 %."""
    model = trained()
    before = model.predict(plain(16)).target
    features, seconds = step(16, np.random.default_rng(1))
    model.observe(features, StepSeconds(seconds.draft * 10, seconds.target * 10, seconds.host * 10))
    assert model.predict(plain(16)).target == pytest.approx(before, rel=0.05)


def test_a_straggler_where_nothing_was_known_is_found_out_at_once() -> None:
    """The first step of its size took six times as long by accident; the second, as it should, sets it right."""
    model, random = OnlineLatencyModel(), np.random.default_rng(8)
    for _ in range(100):
        model.observe(*step(4, random))
    model.observe(*step(128, random, scale=6.0))
    assert model.predict(plain(128)).target < 3 * MEASURED[128]
    for _ in range(2):
        model.observe(*step(128, random))
    assert model.predict(plain(128)).target == pytest.approx(MEASURED[128], rel=0.15)


def test_stragglers_now_and_then_do_not_bias_the_model() -> None:
    """With one step in fifty ten times as long the curve still holds within 10 %."""
    model, random = OnlineLatencyModel(), np.random.default_rng(3)
    for _ in range(1000):
        scale = 10.0 if random.random() < 0.02 else 1.0
        model.observe(*step(int(np.exp(random.uniform(0, np.log(256)))), random, scale=scale))
    for tokens in (1, 8, 32, 128):
        assert model.predict(plain(tokens)).target == pytest.approx(MEASURED[tokens] + 1e-5 * tokens, rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_lasting_shift_is_followed_in_twenty_steps(factor: float) -> None:
    """A device that turns twice as slow, or as fast, is believed at once, also for sizes not run since."""
    model, random = trained(), np.random.default_rng(4)
    for _ in range(20):
        model.observe(*step(16, random, scale=factor))
    assert model.predict(plain(16)).target == pytest.approx(factor * MEASURED[16], rel=0.1)
    assert model.predict(plain(128)).target == pytest.approx(factor * MEASURED[128], rel=0.35)


def test_what_is_not_run_is_not_forgotten_but_becomes_uncertain() -> None:
    """Long after the last large step its time still stands, and is known to be known less well."""
    model, random = trained(), np.random.default_rng(5)
    before = model.uncertainty(plain(128))
    for _ in range(1500):
        model.observe(*step(2, random))
    assert model.predict(plain(128)).target == pytest.approx(MEASURED[128], rel=0.15)
    assert model.uncertainty(plain(128)) > 2 * before
    assert model.uncertainty(plain(2)) < 0.1 * model.predict(plain(2)).target


def test_a_model_that_errs_says_so() -> None:
    """When times have nothing to do with the features the published error is large, and the model calls itself poor."""
    model, random = OnlineLatencyModel(), np.random.default_rng(6)
    for _ in range(200):
        model.observe(plain(8), StepSeconds(0.0, float(np.exp(random.normal(-3, 1.0))), 0.001))
    assert model.error > 0.3
    assert model.is_poor


def test_inside_a_graph_bucket_tokens_are_free() -> None:
    """Where steps are padded to captured sizes, the predicted time has the same stairs."""
    model = OnlineLatencyModel(Regressors(buckets=(4, 8, 16)))
    curve = model.target_curve(np.arange(1, 20), context=0, requests=1, prefill=0) - np.arange(1, 20) * 0.0
    host = model.coefficients()["host.tokens"]
    steps = np.diff(curve) - host
    assert (np.flatnonzero(steps > 1e-9) + 1).tolist() == [4, 8, 16, 17, 18]


def test_a_prior_carries_the_model_over() -> None:
    """Predictions from a `LatencyPrior` are those of the model it was taken from."""
    model = trained()
    prior = model.prior()
    assert prior is not None
    assert prior.weight == 600
    features = StepFeatures(40, 800, 8, draft_batch_by_depth=(8, 8, 8, 8))
    assert predict_seconds(prior, features).total == pytest.approx(model.predict(features).total)


def test_nothing_learned_is_no_prior() -> None:
    """A cold model hands nothing on, and one that never drafted hands on nothing about the draft."""
    assert OnlineLatencyModel().prior() is None
    model = OnlineLatencyModel()
    model.observe(plain(4), StepSeconds(0.0, 0.02, 0.001))
    prior = model.prior()
    assert prior is not None
    assert not [name for name in prior.coefficients if name.startswith("draft.")]


def test_a_prior_fills_in_what_was_not_measured_here_and_no_more() -> None:
    """A replica that is slower than the fleet keeps its own small steps, and learns of large ones from the others."""
    prior, random = trained().prior(), np.random.default_rng(7)
    assert prior is not None
    own = OnlineLatencyModel()
    for _ in range(300):
        own.observe(*step(4, random, scale=1.3))
    cold_guess = own.predict(plain(128)).target
    for _ in range(5):
        own.adopt(prior)
    assert own.predict(plain(4)).target == pytest.approx(1.3 * MEASURED[4], rel=0.1)
    truth = 1.3 * MEASURED[128]
    assert abs(own.predict(plain(128)).target - truth) < min(0.3 * truth, abs(cold_guess - truth))


def test_unknown_and_missing_names_are_harmless() -> None:
    """Priors of an older or newer model are taken in as far as they go."""
    prior = trained().prior()
    assert prior is not None
    some = {name: value for name, value in prior.coefficients.items() if name != "target.context"}
    model = model_of(type(prior)(coefficients={**some, "target.moon_phase": 1.0}, weight=100.0))
    assert model.predict(plain(8)).target == pytest.approx(MEASURED[8], rel=0.1)


@pytest.mark.parametrize(
    ("features", "seconds"),
    [
        (StepFeatures(0, 0, 0), StepSeconds(0.0, 1.0, 1.0)),
        (StepFeatures(1, 1, 1), StepSeconds(0.0, 0.0, 1.0)),
        (StepFeatures(1, 1, 1), StepSeconds(0.0, float("nan"), 1.0)),
    ],
)
def test_steps_that_say_nothing_are_skipped(features: StepFeatures, seconds: StepSeconds) -> None:
    """An empty step, or one without a measured time, leaves the model as it was."""
    model = OnlineLatencyModel()
    before = model.coefficients()
    model.observe(features, seconds)
    assert model.coefficients() == before
