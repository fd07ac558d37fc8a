"""Whether speculation changes a text: greedy ones against `generate()`, seeded ones against themselves."""

from collections.abc import Sequence

from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Proposer
from smartspec.scheduling.request import SamplingParams
from smartspec.selftest.reference import Reference
from smartspec.selftest.report import Check
from smartspec.selftest.runs import Served, fixed, requests_of, run

K = 4
LEAST_EQUAL = 0.5
"""Where the same seed is not promised the same text, at least this share of texts must still be equal: rounding flips a
token in hundreds, a fault nearly every text."""

Prompts = Sequence[Sequence[int]]


def greedy(served: Served, reference: Reference, prompts: Prompts, num_tokens: int) -> list[Check]:
    """Plain text against `generate()`, and speculative text against plain."""
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    plain = run(served, fixed(0), requests_of(prompts, sampling, "greedy")).texts
    texts = [plain[str(i)] for i in range(len(prompts))]
    checks = [_against_generate("greedy = generate()", texts, reference)]
    for name, settings, chosen in _ways(served):
        found = run(chosen, settings, requests_of(prompts, sampling, "greedy"))
        speculative = [found.texts[str(i)] for i in range(len(prompts))]
        if served.model.invariant:
            check = _identical(f"greedy, {name} = plain", speculative, texts)
        else:
            check = _against_generate(f"greedy, {name} = generate()", speculative, reference)
        checks.append(_with_proposals(check, found.num_drafted, found.num_accepted))
    return checks


def coupled(served: Served, prompts: Prompts, num_tokens: int) -> list[Check]:
    """The same seed with and without speculation, in other company and other batches."""
    sampling = SamplingParams(max_tokens=num_tokens, temperature=1.0, ignore_eos=True)
    plain = run(served, fixed(0), requests_of(prompts, sampling, "coupled")).texts
    texts = [plain[str(i)] for i in range(len(prompts))]
    checks = []
    for name, settings, chosen in _ways(served):
        requests = requests_of(prompts, sampling, "coupled")[::-1]
        found = run(chosen.with_batches_of(3), settings, requests)
        speculative = [found.texts[str(i)] for i in range(len(prompts))]
        title = f"same seed, {name} = plain"
        if served.model.invariant:
            check = _identical(title, speculative, texts)
        else:
            equal = sum(a == b for a, b in zip(speculative, texts, strict=True))
            detail = f"{equal} of {len(texts)} texts are equal; this device and model do not promise more"
            check = Check(title, "ok" if equal >= LEAST_EQUAL * len(texts) else "failed", detail)
        checks.append(_with_proposals(check, found.num_drafted, found.num_accepted))
    return checks


def _ways(served: Served) -> list[tuple[str, PolicySettings, Served]]:
    """Each proposer alone at a fixed length, and all of them as the policy likes."""
    proposers: tuple[Proposer, ...] = served.model.proposers
    ways = [(f"{name} k={K}", fixed(K), served.with_proposers(name)) for name in proposers]
    return [*ways, ("policy", PolicySettings(), served)] if proposers else []


def _identical(title: str, found: list[list[int]], expected: list[list[int]]) -> Check:
    for i, (text, wanted) in enumerate(zip(found, expected, strict=True)):
        if text != wanted:
            return Check(title, "failed", f"text {i} parts at token {_parting(text, wanted)}")
    return Check(title, "ok", f"{len(found)} texts of {len(expected[0])} tokens are identical")


def _against_generate(title: str, found: list[list[int]], reference: Reference) -> Check:
    """Equal, or parting where the reference was undecided between two tokens."""
    ties = 0
    for i, (text, wanted) in enumerate(zip(found, reference.texts, strict=True)):
        if text != wanted:
            first = _parting(text, wanted)
            if first >= len(wanted) or not reference.undecided[i][first]:
                return Check(title, "failed", f"text {i} parts at token {first}, where the model is decided")
            ties += 1
    detail = f"{len(found) - ties} of {len(found)} texts of {len(reference.texts[0])} tokens are identical"
    return Check(title, "ok", detail + (f", {ties} part where two tokens are as good" if ties else ""))


def _parting(text: list[int], wanted: list[int]) -> int:
    pairs = enumerate(zip(text, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(wanted)))


def _with_proposals(check: Check, drafted: int, accepted: int) -> Check:
    return Check(check.name, check.outcome, f"{check.detail}; {accepted} of {drafted} proposed tokens accepted")
