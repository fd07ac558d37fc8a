"""Shows at the end what tests have measured."""

import pytest

from figures import PUBLISHED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a test, whether it passed or not."""
    if PUBLISHED:
        terminalreporter.section("figures")
        for line in PUBLISHED:
            terminalreporter.line(line)
