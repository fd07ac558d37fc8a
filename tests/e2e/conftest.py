"""Shows at the end what tests have measured."""

from typing import Any

import pytest

from figures import PUBLISHED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Where tests ran in workers of pytest-xdist, take over what each of them measured."""
    PUBLISHED.extend(getattr(node, "workeroutput", {}).get("figures", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In such a worker: hand it over."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["figures"] = PUBLISHED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a test, whether it passed or not."""
    if PUBLISHED:
        terminalreporter.section("figures")
        for line in PUBLISHED:
            terminalreporter.line(line)
