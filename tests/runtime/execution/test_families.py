"""Every family either runs packed over the paged cache as it would alone, or is served another way."""

import pytest
import torch

from execution_families import PADDED, PAGED, STATEFUL, build, eager_logits, random_ids
from smartspec.execution import self_check
from smartspec.execution.batch import Segment
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.recomputed_model import RecomputedModel


@pytest.mark.parametrize("family", PAGED)
def test_a_ragged_verification_step_equals_eager(family: str) -> None:
    """Prefill of two requests, then four rows of one with a wrong proposal written over, beside a decoding one."""
    model = build(PAGED[family]())
    first, second = random_ids(40), random_ids(25, seed=1)
    expected = [eager_logits(model, first), eager_logits(model, second)]
    paged = PagedModel(model, num_blocks=8, block_size=16)
    tables = ([7, 2, 5], [0, 3])
    paged.forward([Segment(first[:30], 0, tables[0]), Segment(second[:24], 0, tables[1])])
    wrong = [first[30], first[31], 9, 9]
    step = paged.forward([Segment(wrong, 30, tables[0], 4), Segment(second[24:], 24, tables[1], 1)])
    after = paged.forward([Segment(first[32:], 32, tables[0], 8)])
    found = torch.cat([step[:2], step[4:], after])
    wanted = torch.cat([expected[0][30:32], expected[1][24:], expected[0][32:]])
    assert (found - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("family", PAGED)
def test_the_check_lets_it_run_paged(family: str) -> None:
    """No family that works is turned away."""
    assert self_check.check(build(PAGED[family]())).attention == "paged"


@pytest.mark.parametrize("family", [*PADDED, *STATEFUL])
def test_what_cannot_run_paged_is_recomputed_and_right(family: str) -> None:
    """The check finds it, and what serves it instead equals eager through chunks, company and wrong proposals."""
    expected_kind = "padded" if family in PADDED else "stateful"
    model = build((PADDED | STATEFUL)[family]())
    first, second = random_ids(40), random_ids(25, seed=1)
    expected = [eager_logits(model, first), eager_logits(model, second)]
    verdict = self_check.check(model)
    assert verdict.attention == expected_kind
    served = RecomputedModel(model, num_blocks=8, block_size=16, batches=expected_kind == "padded")
    tables = ([7, 2, 5], [0, 3])
    assert served.forward([Segment(first[:30], 0, tables[0])]).shape == (0, served.vocab_size)
    wrong = [first[30], first[31], 9, 9]
    step = served.forward([Segment(wrong, 30, tables[0], 4), Segment(second, 0, tables[1], 2)])
    after = served.forward([Segment(first[32:], 32, tables[0], 8)])
    torch.testing.assert_close(step[:2], expected[0][30:32], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step[4:], expected[1][23:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, expected[0][32:], atol=1e-4, rtol=1e-4)
