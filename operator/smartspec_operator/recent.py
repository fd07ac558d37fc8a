"""Failures of what a SmartSpec can do without: bounded in time, and believed for a while instead of met every tick."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from smartspec_operator.cluster import NotOursError
from smartspec_operator.kube import ApiError

T = TypeVar("T")

KEPT_SECONDS = 30.0
"""How long a failure is believed: who has mended its cause, a right or a webhook, need not wait long."""
PATIENCE_SECONDS = 5.0
"""How long an answer is waited for: a webhook that hangs must not hold up what everybody else needs."""


class RecentFailures:
    """What failed lately, by what was asked. Lost at a restart without harm."""

    def __init__(self) -> None:
        self._failed: dict[Hashable, tuple[float, Exception]] = {}

    async def ask(self, question: Hashable, answer: Callable[[], Awaitable[T]]) -> T:
        """What *answer* gives; where the same *question* failed lately, that failure once more, and nothing is asked.

        Raises `ApiError` and `NotOursError`.
        """
        known = self._failed.get(question)
        if known is not None and time.monotonic() < known[0]:
            raise known[1]
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await answer()
        except TimeoutError:
            raise self._kept(question, ApiError(0, f"no answer within {PATIENCE_SECONDS:g} s")) from None
        except (ApiError, NotOursError) as error:
            self._kept(question, error)
            raise

    def _kept(self, question: Hashable, error: Exception) -> Exception:
        now = time.monotonic()
        self._failed = {asked: held for asked, held in self._failed.items() if held[0] > now}
        self._failed[question] = (now + KEPT_SECONDS, error)
        return error
