"""What a selftest has found: data for machines, a table for people, a verdict for both."""

from typing import Literal

import msgspec
from msgspec import Struct

from smartspec.policy.types import Proposer, Verifier

Outcome = Literal["ok", "failed", "skipped"]


class Check(Struct, frozen=True):
    """One thing that must hold, and how it was found to be."""

    name: str
    outcome: Outcome
    detail: str


class Acceptance(Struct, frozen=True):
    """How a proposer's tokens fared: `rates[j]` of `trials[j]` proposals that had come so far were accepted at
    position j. `offered` is the share of steps in which there was anything to propose."""

    proposer: Proposer
    verifier: Verifier
    rates: tuple[float, ...]
    trials: tuple[int, ...]
    offered: float


class CurvePoint(Struct, frozen=True):
    """Median seconds of one forward over so many tokens, one from each of as many requests; None: no draft."""

    tokens: int
    target_seconds: float
    draft_seconds: float | None


class Choice(Struct, frozen=True):
    """What the policy would choose for so many requests, all of one verifier, and what that promises.

    `mean_k` is speculative tokens per request; `gain` is predicted goodput over plain decoding's, less 1. `measured`
    says whether steps of this many requests were run here: beyond, the time model extrapolates.
    """

    requests: int
    verifier: Verifier
    mean_k: float
    step_seconds: float
    tokens_per_second: float
    plain_tokens_per_second: float
    gain: float
    measured: bool


class Report(Struct, frozen=True):
    """Everything a selftest has found. Seconds, tokens and shares throughout."""

    target: str
    draft: str | None
    version: str
    key: str
    attention: str
    invariant: bool
    proposers: tuple[str, ...]
    seconds: float
    checks: tuple[Check, ...]
    acceptance: tuple[Acceptance, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    time_error: float | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether no check has failed."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def verdict(self) -> str:
        """The whole in one line."""
        failed = [check.name for check in self.checks if check.outcome == "failed"]
        if failed:
            return f"FAILED: {', '.join(failed)}"
        passed = sum(check.outcome == "ok" for check in self.checks)
        if not self.proposers:
            return f"ok: {passed} checks passed; this model can only be served without speculation"
        if not self.choices:
            return f"ok: {passed} checks passed"
        greedy = [choice for choice in self.choices if choice.verifier == "greedy"]
        gains = ", ".join(f"{choice.gain:+.0%} with {choice.requests}" for choice in (greedy[0], greedy[-1]))
        return (
            f"ok: {passed} checks passed; expected gain over plain decoding at temperature 0: {gains} requests at once"
        )

    def as_json(self) -> bytes:
        """All fields, `ok` and `verdict` beside them."""
        return msgspec.json.encode({**msgspec.structs.asdict(self), "ok": self.is_ok, "verdict": self.verdict})

    def as_table(self) -> str:
        """For people; the last line is the verdict."""
        parts = [
            [f"{self.target}" + (f" with {self.draft}" if self.draft else ""), self.key],
            [f"  {check.outcome:<8}{check.name}: {check.detail}" for check in self.checks],
            self._acceptance_lines(),
            self._curve_lines(),
            self._choice_lines(),
            [f"{self.verdict} ({self.seconds:.0f} s)"],
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def _acceptance_lines(self) -> list[str]:
        if not self.acceptance:
            return []
        depth = max(len(row.rates) for row in self.acceptance)
        head = "acceptance by position  offered" + "".join(f"{position:>6}" for position in range(1, depth + 1))
        return [
            head,
            *(
                f"  {row.proposer:<7}{row.verifier:<13}{row.offered:>9.0%}"
                + "".join(f"{rate:>6.2f}" for rate in row.rates)
                for row in self.acceptance
            ),
        ]

    def _curve_lines(self) -> list[str]:
        if not self.curve:
            return []
        error = "" if self.time_error is None else f"   (the time model errs by {self.time_error:.0%} over whole steps)"
        return [
            f"one forward, milliseconds{error}",
            "  tokens" + "".join(f"{point.tokens:>8}" for point in self.curve),
            "  target" + "".join(f"{1000 * point.target_seconds:>8.1f}" for point in self.curve),
            *(
                ["  draft " + "".join(f"{1000 * (point.draft_seconds or 0.0):>8.2f}" for point in self.curve)]
                if self.curve[0].draft_seconds is not None
                else []
            ),
        ]

    def _choice_lines(self) -> list[str]:
        if not self.choices:
            return []
        lines = ["what the policy would choose", "  requests  verifier      k   step ms    tokens/s   plain      gain"]
        return lines + [
            f"  {row.requests:>8}  {row.verifier:<10}{row.mean_k:>5.1f}{1000 * row.step_seconds:>10.1f}"
            f"{row.tokens_per_second:>12.1f}{row.plain_tokens_per_second:>8.1f}{row.gain:>+10.0%}"
            f"{'' if row.measured else '   extrapolated'}"
            for row in self.choices
        ]
