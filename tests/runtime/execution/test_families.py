"""Logits of every family, to the last digits: packed over the paged cache, or recomputed, as of each text alone.

What is chosen at load, and the text that comes of it, see `test_served_families`.
"""

import pytest
import torch

from execution_families import PADDED, PAGED, STATEFUL, build, eager_logits, random_ids
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


@pytest.mark.parametrize("family", [*PADDED, *STATEFUL])
def test_what_cannot_run_paged_is_recomputed_and_right(family: str) -> None:
    """What serves it instead equals eager through chunks, company and wrong proposals."""
    model = build((PADDED | STATEFUL)[family]())
    first, second = random_ids(40), random_ids(25, seed=1)
    expected = [eager_logits(model, first), eager_logits(model, second)]
    served = RecomputedModel(model, num_blocks=8, block_size=16, batches=family in PADDED)
    tables = ([7, 2, 5], [0, 3])
    assert served.forward([Segment(first[:30], 0, tables[0])]).shape == (0, served.vocab_size)
    wrong = [first[30], first[31], 9, 9]
    step = served.forward([Segment(wrong, 30, tables[0], 4), Segment(second, 0, tables[1], 2)])
    after = served.forward([Segment(first[32:], 32, tables[0], 8)])
    torch.testing.assert_close(step[:2], expected[0][30:32], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step[4:], expected[1][23:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, expected[0][32:], atol=1e-4, rtol=1e-4)
