"""From loading to gone: the one owner of what the server may do now."""

import asyncio
import logging
from typing import Literal

import msgspec

from smartspec import __version__
from smartspec.policy.load import LoadReport
from smartspec.scheduling.client import EngineClient, NotAcceptingError

log = logging.getLogger(__name__)

Phase = Literal["loading", "ready", "lame-duck", "draining"]


class Lifecycle:
    """`loading` -> `ready` -> `lame-duck` -> `draining`; the engine may fail at any time after loading.

    In the lame-duck phase the server is no longer ready but still serves: a load balancer needs a while to hear of it,
    and clients hold connections open. Their answers say `Connection: close`, so that they go elsewhere.
    """

    def __init__(self, model: str, *, lame_duck_seconds: float) -> None:
        self.model = model
        self.phase: Phase = "loading"
        self._lame_duck_seconds = lame_duck_seconds
        self._engine: EngineClient | None = None
        self._drain: asyncio.Task[None] | None = None

    def engine_started(self, engine: EngineClient) -> None:
        """The model is loaded; unless a drain was asked for meanwhile, requests are welcome from now on."""
        self._engine = engine
        if self.phase == "loading":
            self.phase = "ready"
        else:
            engine.start_draining()

    @property
    def engine(self) -> EngineClient:
        """The engine, for questions about it; raises NotAcceptingError while there is none."""
        if self._engine is None:
            raise NotAcceptingError(f"{self.model} is {self.phase}")
        return self._engine

    @property
    def accepting_engine(self) -> EngineClient:
        """The engine, for a new request; raises NotAcceptingError when none may start."""
        engine = self.engine
        if (reason := engine.failure) is not None:
            raise NotAcceptingError(reason)
        if self.phase == "draining":
            raise NotAcceptingError(f"{self.model} is draining")
        return engine

    @property
    def failure(self) -> str | None:
        """Why this process can never serve again, or None."""
        return None if self._engine is None else self._engine.failure

    @property
    def unready_reason(self) -> str | None:
        """Why requests had better go elsewhere, or None when they are welcome here."""
        if self.failure is not None:
            return self.failure
        return None if self.phase == "ready" else self.phase

    @property
    def is_leaving(self) -> bool:
        """Whether connections should be closed after the answer."""
        return self.phase in ("lame-duck", "draining")

    def load(self) -> LoadReport:
        """The engine's report, or an empty one before there is an engine; its state is the server's."""
        if self._engine is None:
            state: Literal["loading", "draining"] = "loading" if self.phase == "loading" else "draining"
            return LoadReport(model=self.model, version=__version__, state=state)
        report = self._engine.load()
        return msgspec.structs.replace(report, state="draining") if self.is_leaving else report

    def start_draining(self) -> asyncio.Task[None]:
        """Begin to leave, once; the task ends when nothing is running or waiting any more."""
        if self._drain is None:
            self._drain = asyncio.create_task(self._leave(), name="drain")
        return self._drain

    async def _leave(self) -> None:
        self.phase = "lame-duck" if self._engine is not None else "draining"
        log.info("event=draining lame_duck_seconds=%g", self._lame_duck_seconds)
        if self._engine is not None and self._engine.failure is None:
            await asyncio.sleep(self._lame_duck_seconds)
        self.phase = "draining"
        if self._engine is not None:
            self._engine.start_draining()
            if self._engine.failure is None:
                await self._engine.wait_drained()
        log.info("event=drained")
