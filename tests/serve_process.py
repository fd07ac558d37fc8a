"""`smartspec serve` as a process of its own, for tests that need the whole thing."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0


class ServeProcess:
    """A running `smartspec serve` on free ports; `log` grows with every line it writes."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "smartspec", "serve", "--compile", "off", *arguments]
        command += ["--port", "0", "--admin-port", "0"]
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | threads | (environment or {})
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def _urls(self) -> tuple[str, str]:
        """The public and the admin URL, as soon as the process has said them."""
        while self.process.poll() is None:
            for line in self.log:
                if found := re.search(r"event=listening url=(\S+) admin_url=(\S+)", line):
                    return found[1], found[2]
            time.sleep(0.01)
        raise AssertionError("ended before it listened:\n" + "".join(self.log))

    @property
    def url(self) -> str:
        """Where the public port is."""
        return self._urls()[0]

    @property
    def admin_url(self) -> str:
        """Where the admin port is."""
        return self._urls()[1]

    def get(self, path: str) -> tuple[int, str]:
        """GET from the public port."""
        return _get(self.url + path)

    def get_admin(self, path: str) -> tuple[int, str]:
        """GET from the admin port, without a key."""
        return _get(self.admin_url + path)

    def wait_ready(self) -> "ServeProcess":
        """Return when requests are welcome."""
        deadline = time.monotonic() + START_SECONDS
        while self.get("/ready")[0] != 200:
            assert self.process.poll() is None, "ended before it was ready:\n" + "".join(self.log)
            assert time.monotonic() < deadline, "not ready in time:\n" + "".join(self.log)
            time.sleep(0.05)
        return self

    def resident_mebibytes(self) -> float:
        """Its memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def wait(self, seconds: float = 20.0) -> int:
        """The exit status, when it has ended."""
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextmanager
def serve_process(
    target: Path | str, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[ServeProcess]:
    """Run `smartspec serve TARGET` with more *arguments* while the context lasts."""
    running = ServeProcess(str(target), *arguments, environment=environment)
    try:
        yield running
    finally:
        running.close()
