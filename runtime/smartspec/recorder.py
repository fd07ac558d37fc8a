"""`--trace FILE`: writes down what the policy meets while it serves, in a thread of its own, and never in its way.

The engine's thread appends references to a queue, for everything that crosses the policy's seam is frozen; once a
second the recorder's thread turns them into lines. A disk that is full or gone ends the recording, not the serving.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from smartspec import __version__
from smartspec.async_engine.thread import TunablePolicy
from smartspec.policy.load import LoadReport
from smartspec.policy.recording import (
    FORMAT,
    Applied,
    Dropped,
    EngineState,
    Event,
    Loaded,
    Start,
    encode,
    step_of,
)
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.policy.types import BatchState, Decision, Limits, StepOutcome

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
MOST_WAITING = 20_000
"""Lines that may wait for the disk; more are dropped, and counted."""

_Line = Callable[[], Event]


class Recorder:
    """A recording in *path*, written by a thread of its own until `close`.

    When the file has grown beyond *max_bytes* it becomes `path.1`, in place of the one before, and a new one begins:
    both together take at most twice as much. Raises OSError when the file cannot be opened; what goes wrong later is
    logged, once, and ends the recording. `write` may be called from any thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._clock, self._now, self._began = clock, now, clock()
        self._waiting: deque[_Line] = deque()
        self._num_dropped = 0
        self._start: Start | None = None
        self._file: BinaryIO | None = path.open("wb")
        self._num_bytes = 0
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """The recording's own time: seconds since it began."""
        return self._clock() - self._began

    def write(self, line: _Line) -> None:
        """Have *line* called and its event written within a second or so; costs next to nothing here."""
        if self._file is None:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._num_dropped += 1
        else:
            self._waiting.append(line)

    def start(self, key: str, settings: PolicySettings) -> None:
        """Write the first line."""
        event = Start(FORMAT, __version__, self._now() - self.seconds, key, settings)
        self.write(lambda: event)

    def load(self, report: LoadReport) -> None:
        """Write a load report."""
        event = Loaded(self.seconds, report)
        self.write(lambda: event)

    def close(self) -> None:
        """Write what waits, and end."""
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_closing.wait(FLUSH_SECONDS):
                self._flush()
            self._flush()
        except OSError as error:
            log.warning("event=trace_failed file=%s error=%r", self._path, str(error))
        finally:
            file, self._file = self._file, None
            self._waiting.clear()
            if file is not None:
                with contextlib.suppress(OSError):  # a full disk refuses to be told so twice
                    file.close()

    def _flush(self) -> None:
        file = self._file
        assert file is not None
        while self._waiting:
            event = self._waiting.popleft()()
            self._remember(event)
            line = encode(event)
            if self._num_bytes + len(line) > self._max_bytes and self._num_bytes:
                file = self._rotate(file)
            self._num_bytes += file.write(line)
        if self._num_dropped:
            dropped, self._num_dropped = self._num_dropped, 0
            self._num_bytes += file.write(encode(Dropped(self.seconds, dropped)))
        file.flush()

    def _rotate(self, file: BinaryIO) -> BinaryIO:
        """A new file, which begins with what is known by now: it can be replayed without the one before."""
        file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = file = self._path.open("wb")
        self._num_bytes = file.write(encode(self._start)) if self._start is not None else 0
        return file

    def _remember(self, event: Event) -> None:
        """Keep what the next file begins with: the settings in force and the priors last reported."""
        if isinstance(event, Start):
            self._start = event
        elif self._start is not None:
            settings = self._start.settings
            if isinstance(event, Applied):
                settings = msgspec.structs.replace(event.settings, priors=event.settings.priors or settings.priors)
            elif isinstance(event, Loaded) and event.report.priors is not None:
                settings = msgspec.structs.replace(settings, priors=event.report.priors)
            self._start = msgspec.structs.replace(self._start, settings=settings)


class RecordedPolicy:
    """*policy*, and beside it a line in *recorder* for each step. `engine`, when set, tells the state around it."""

    def __init__(self, policy: TunablePolicy, key: str, recorder: Recorder) -> None:
        self._policy = policy
        self._recorder = recorder
        self._batch: BatchState | None = None
        self._ended: list[str] = []
        self.engine: Callable[[], EngineState] | None = None
        recorder.start(key, policy.settings)

    @property
    def settings(self) -> PolicySettings:
        """The settings in force."""
        return self._policy.settings

    def rests(self, num_requests: int) -> bool:
        """As the policy says."""
        return self._policy.rests(num_requests)

    def limits(self, batch: BatchState) -> Limits:
        """As the policy says."""
        return self._policy.limits(batch)

    def decide(self, batch: BatchState) -> Decision:
        """As the policy says; *batch* is noted."""
        self._batch = batch
        return self._policy.decide(batch)

    def observe(self, outcome: StepOutcome) -> None:
        """Tell the policy, and write the step down."""
        self._policy.observe(outcome)
        seconds, batch, ended = self._recorder.seconds, self._batch, tuple(self._ended)
        state = self.engine() if self.engine is not None else None
        self._batch = None
        self._ended.clear()
        self._recorder.write(lambda: step_of(seconds, batch, outcome, ended, state))

    def forget(self, request_id: str) -> None:
        """Tell the policy, and note it for the next line."""
        self._policy.forget(request_id)
        self._ended.append(request_id)

    def apply(self, settings: PolicySettings) -> None:
        """Put *settings* in force, and write them down."""
        self._policy.apply(settings)
        event = Applied(self._recorder.seconds, settings)
        self._recorder.write(lambda: event)

    def priors(self) -> Priors:
        """As the policy says."""
        return self._policy.priors()

    def explain(self) -> dict[str, Any]:
        """As the policy says."""
        return self._policy.explain()
