"""A prediction is followed while it is right, left when it is wrong, and found again after an edit."""

import time

from hypothesis import given
from hypothesis import strategies as st

from smartspec.scheduling.prediction import Prediction
from smartspec.scheduling.prompt_lookup import NO_MATCH

PROMPT = [900, 901, 902]


def accepted_share(predicted: list[int], answer: list[int], length: int) -> float:
    """Share of *answer* that was drafted right when *length* tokens are proposed at every step."""
    text = list(PROMPT)
    prediction = Prediction(predicted, text, len(PROMPT))
    num_accepted = num_steps = 0
    while len(text) < len(PROMPT) + len(answer):
        rest = answer[len(text) - len(PROMPT) :]
        drafted = prediction.find(length).token_ids
        num_right = next((i for i, pair in enumerate(zip(drafted, rest, strict=False)) if pair[0] != pair[1]), None)
        num_right = min(len(drafted), len(rest)) if num_right is None else num_right
        text += rest[: num_right + 1]
        num_accepted += num_right
        num_steps += 1
    return num_accepted / len(answer)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.integers(1, 8))
def test_a_right_prediction_is_all_drafted(answer: list[int], length: int) -> None:
    """The whole answer comes in the fewest steps there can be, from its first token on."""
    text = list(PROMPT)
    prediction = Prediction(answer, text, len(PROMPT))
    for start in range(0, len(answer), length + 1):
        assert prediction.find(length).token_ids == tuple(answer[start : start + length])
        text += answer[start : start + length + 1]
    assert prediction.find(length) == NO_MATCH


def test_edits_cost_a_few_tokens_each() -> None:
    """A change, an insertion and a deletion in a long text: it is found again behind each of them."""
    text = [i * 37 % 101 for i in range(400)]
    edited = [*text[:80], 700, 701, *text[82:160], *range(800, 830), *text[160:240], *text[300:]]
    assert accepted_share(text, edited, 7) > 0.7
    assert accepted_share([*range(2000, 2400)], edited, 7) == 0.0


def test_the_nearest_place_behind_is_taken() -> None:
    """Of several places that look alike, the next one: an edit seldom goes back."""
    phrase = [1, 2, 3]
    predicted = [*phrase, 10, 50, 51, *phrase, 20, 60, 61, *phrase, 30]
    text = list(PROMPT)
    prediction = Prediction(predicted, text, len(PROMPT))
    text += [*phrase, 10, 50, 99, *phrase]
    assert prediction.find(1).token_ids == (20,)
    text += [20, 60, 99, *phrase]
    assert prediction.find(1).token_ids == (30,)
    text += [99, *phrase]
    assert prediction.find(1).token_ids == (30,)


def test_the_match_says_how_far_to_trust_it() -> None:
    """One before the first token, then as long as what was right, short again after an edit."""
    text = list(PROMPT)
    prediction = Prediction(list(range(100)), text, len(PROMPT))
    lengths = [prediction.find(2).match_tokens]
    for token in [0, 1, 2, 3, 4, 5, 500]:
        text.append(token)
        lengths.append(prediction.find(2).match_tokens)
    text += [6, 7]
    lengths.append(prediction.find(2).match_tokens)
    assert lengths == [1, 1, 2, 3, 4, 5, 6, 0, 2]


def test_the_prompt_is_no_part_of_the_answer() -> None:
    """Tokens of the prompt are not looked up: the answer begins at its beginning."""
    text = [0, 1, 2, 3]
    assert Prediction([7, 1, 2, 3, 8], text, 4).find(2).token_ids == (7, 1)


def test_a_long_prediction_of_one_thing_costs_little() -> None:
    """Where every place looks like every other, and the answer is never as predicted, a token costs microseconds."""
    text = list(PROMPT)
    prediction = Prediction([1, 1] * 20_000, text, len(PROMPT))
    text += [1, 2, 1, 1, 2]
    prediction.find(4)
    began = time.perf_counter()
    for _ in range(200):
        text += [1, 1, 2]
        prediction.find(4)
    assert time.perf_counter() - began < 0.5
