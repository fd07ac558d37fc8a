"""Log probabilities: the model's own, the same bits alone and in company, in pieces and at once."""

import pytest
import torch

from smartspec.execution.logprobs import score


def test_a_token_is_scored_by_the_raw_logits() -> None:
    """Log probability and rank of the token, and the most probable ones beside it, as many as each row asks for."""
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(3)) * 3
    expected = logits.double().log_softmax(dim=1)
    tokens, nums_top = [4, 0, 10], [0, 3, 20]
    for row, (found, token, num_top) in enumerate(zip(score(logits, tokens, nums_top), tokens, nums_top, strict=True)):
        assert found.token_id == token
        assert found.logprob == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert found.rank == 1 + int((logits[row] > logits[row, token]).sum())
        order = logits[row].argsort(descending=True).tolist()[:num_top]
        assert [token_id for token_id, _ in found.top] == order
        assert [logprob for _, logprob in found.top] == pytest.approx(expected[row, order].tolist(), abs=1e-5)


def test_a_long_prompt_is_scored_in_pieces() -> None:
    """Whatever the number of rows, each is scored as it is alone."""
    logits = torch.randn(200, 17, generator=torch.Generator().manual_seed(4))
    tokens = [row % 17 for row in range(200)]
    alone = [score(logits[row : row + 1], [token], [2])[0] for row, token in enumerate(tokens)]
    assert score(logits, tokens, [2] * 200) == alone
    assert score(logits[:0], [], []) == []


def test_what_is_impossible_has_a_number() -> None:
    """An infinite log probability could not be written as JSON."""
    (scored,) = score(torch.tensor([[0.0, -torch.inf]]), [1], [2])
    assert (scored.logprob, scored.rank) == (-9999.0, 2)
    assert scored.top == ((0, 0.0), (1, -9999.0))
