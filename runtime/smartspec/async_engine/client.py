"""The engine behind the server: `EngineClient` on the event loop, the engine itself in a thread of its own.

State is split by owner, not by lock. The event loop owns streams, settings and the load meter; the thread owns
scheduler, policy and models. Commands go one way through a queue, one message per step comes back.
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import AsyncGenerator, Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import msgspec

from smartspec import __version__
from smartspec.async_engine.grammars import Grammars
from smartspec.async_engine.live_requests import LiveRequests
from smartspec.async_engine.speculation_totals import SpeculationTotals
from smartspec.async_engine.thread import (
    Abort,
    Add,
    Apply,
    Command,
    EngineThread,
    Learned,
    LoadedEngine,
    StepReport,
    Stop,
)
from smartspec.config import RuntimeConfig
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec.policy.types import Verifier
from smartspec.scheduling.admission import check_fits
from smartspec.scheduling.client import (
    EngineInfo,
    GenerationDelta,
    GenerationRequest,
    NotAcceptingError,
    StalePolicyError,
    Tokenizer,
)
from smartspec.scheduling.grammar import Grammar, GrammarSpec
from smartspec.scheduling.output import StepStats
from smartspec.scheduling.request import Request, SamplingParams

log = logging.getLogger(__name__)

D = TypeVar("D")


class AsyncEngine(Generic[D]):
    """An `EngineClient`. *build* loads the models; it is called in the engine's thread, by `start`.

    *settings* is the policy to begin with. All times are the *clock*'s, in seconds. Made, and called, on the event
    loop.
    """

    def __init__(
        self,
        build: Callable[[], LoadedEngine[D]],
        config: RuntimeConfig,
        settings: PolicySettings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._build = build
        self._config = config
        self._settings = settings
        self._clock = clock
        self._noise_seeds = random.Random(config.model.seed)
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loaded: LoadedEngine[D] | None = None
        self._failure: str | None = None
        self._is_draining = False
        self._requests = LiveRequests(config, clock, lambda request_id: self._commands.put(Abort(request_id)))
        self._observers: list[Callable[[StepStats], None]] = []
        self._learned: Learned | None = None
        self._totals = SpeculationTotals()
        self._grammars = Grammars(lambda spec: self._require_loaded().compile_grammar(spec))

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load in the engine's thread and return when requests can come; raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._ready

    async def stop(self) -> None:
        """End whatever runs, and the thread."""
        self._is_draining = True
        self._grammars.close()
        self._commands.put(Stop())
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._requests.fail(NotAcceptingError("the engine has stopped"))

    def _run(self) -> None:
        """The thread's body. What goes wrong in it is told to the event loop, for there is nobody else."""
        try:
            loaded = self._build()
        except BaseException as error:
            self._tell(self._load_failed, error)
            return
        self._tell(self._load_done, loaded)
        try:
            EngineThread(loaded, self._commands, lambda report: self._tell(self._receive, report), self._clock).run()
        except Exception as error:
            log.exception("event=engine_failed")
            self._tell(self._fail, f"the engine failed: {type(error).__name__}: {error}")

    def _tell(self, receive: Callable[..., None], message: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(receive, message)

    def _load_failed(self, error: BaseException) -> None:
        self._failure = f"loading failed: {error}"
        if not self._ready.done():
            self._ready.set_exception(error)

    def _load_done(self, loaded: LoadedEngine[D]) -> None:
        self._loaded = loaded
        self._settings = loaded.policy.settings
        if not self._ready.done():
            self._ready.set_result(None)

    def _fail(self, message: str) -> None:
        self._failure = message
        self._requests.fail(NotAcceptingError(message))

    def _receive(self, report: StepReport) -> None:
        """One step's message from the thread."""
        self._learned = report.learned or self._learned
        self._requests.deliver(report)
        if report.stats is not None:
            self._totals.stepped(report.stats)
            for observe in self._observers:
                observe(report.stats)

    # -- what was loaded ------------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """What was loaded; raises NotAcceptingError while loading."""
        return self._require_loaded().info

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer; raises NotAcceptingError while loading."""
        return self._require_loaded().tokenizer

    @property
    def failure(self) -> str | None:
        """Why the engine can no longer serve, or None while it can."""
        return self._failure

    def _require_loaded(self) -> LoadedEngine[D]:
        if self._loaded is None:
            raise NotAcceptingError(self._failure or "the model is loading")
        return self._loaded

    # -- requests -------------------------------------------------------------------------------------------------

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Queue *request*; see `EngineClient.generate`."""
        loaded = self._require_accepting()
        info, sampling, prompt = loaded.info, request.sampling, list(request.prompt_token_ids)
        check_fits(len(prompt), sampling.max_tokens, info.max_model_len, info.num_blocks * info.block_size)
        stream = self._requests.admit(request, self._settings)
        seed = sampling.seed if sampling.seed is not None else self._noise_seeds.getrandbits(63)
        self._commands.put(
            Add(
                Request(
                    request_id=request.request_id,
                    prompt_token_ids=prompt,
                    sampling=sampling,
                    noise_seed=seed,
                    arrival_time=stream.arrival_time,
                    speculation=request.speculation,
                    cache_salt=request.cache_salt,
                    rule=request.rule,
                    prediction_token_ids=request.prediction_token_ids,
                    shows_special_tokens=request.shows_special_tokens,
                    tenant=request.tenant,
                    priority=request.priority,
                    eos_token_ids=loaded.eos_token_ids,
                    verifier=self._verifier(sampling),
                )
            )
        )
        return stream

    async def compile_grammar(self, spec: GrammarSpec) -> Grammar:
        """The grammar of *spec*, compiled beside the loop and the engine; see `EngineClient.compile_grammar`."""
        self._require_accepting()
        return await self._grammars.get(spec)

    def refuse_if_full(self, tenant: str) -> None:
        """Raise what `generate` would for the smallest request of *tenant*."""
        self._require_accepting()
        self._requests.refuse_if_full(tenant, self._settings)

    def _require_accepting(self) -> LoadedEngine[D]:
        loaded = self._require_loaded()
        if self._failure is not None or self._is_draining:
            raise NotAcceptingError(self._failure or "the engine is draining")
        return loaded

    def _verifier(self, sampling: SamplingParams) -> Verifier:
        if sampling.is_greedy:
            return "greedy"
        verification = self._config.speculation.verification
        if verification == "auto":
            return "rejection" if sampling.seed is None else "coupled"
        return verification

    def start_draining(self) -> None:
        """Accept no more requests; what runs or waits is finished."""
        self._is_draining = True

    async def wait_drained(self) -> None:
        """Return when nothing runs or waits."""
        await self._requests.wait_drained()

    # -- load and policy ------------------------------------------------------------------------------------------

    def subscribe(self, observer: Callable[[StepStats], None]) -> None:
        """Call *observer* with each step's statistics."""
        self._observers.append(observer)

    def load(self) -> LoadReport:
        """Load now and over the recent window."""
        if self._loaded is None:
            return LoadReport(model=self._config.model.name, version=__version__, state="loading")
        info = self._loaded.info
        report = self._requests.load(self._settings, info.num_blocks * info.block_size)
        return msgspec.structs.replace(
            report,
            state="draining" if self._is_draining else "ready",
            priors=self._learned.priors if self._learned else None,
        )

    def settings(self) -> PolicySettings:
        """The policy in force."""
        return self._settings

    def apply_settings(self, settings: PolicySettings) -> PolicySettings:
        """Make *settings* the policy from the next step on; see `EngineClient.apply_settings`."""
        key, current = self._require_loaded().info.key, self._settings
        if settings == current:
            return current
        if settings.generation <= current.generation:
            raise StalePolicyError(
                f"generation {settings.generation} is not newer than generation {current.generation}, which is in force"
            )
        if settings.priors is not None and settings.priors.key != key:
            raise StalePolicyError(f"priors.key is {settings.priors.key!r}, but this runtime is {key!r}")
        self._settings = settings
        self._commands.put(Apply(settings))
        return settings

    def speculation(self) -> dict[str, Any]:
        """What the policy chose lately and why, at most a second old while busy; beside it what came of it since the
        start (`totals`) and over the recent window (`recent`)."""
        return {
            **(self._learned.explanation if self._learned else {}),
            "totals": self._totals.report(),
            "recent": msgspec.to_builtins(self.load().speculation),
        }
