"""A headless Chromium for tests of the page; where there is none they are skipped, with a line that says what to do."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import npm_packages

PATIENCE_MS = 15_000


def chromium() -> str:
    """The path of a Chromium; skips the test when there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium for the page's tests: apt-get install chromium")


@asynccontextmanager
async def opened(url: str, **context: Any) -> AsyncIterator[Any]:
    """A page at *url*, in a browser of its own; what its console complains about is in `page.complaints`.

    *context* goes to Playwright's `new_context`: viewport, color_scheme, reduced_motion.
    """
    playwright_api = pytest.importorskip("playwright.async_api", reason="pip install playwright")
    path = chromium()
    async with playwright_api.async_playwright() as playwright:
        # Root has no sandbox to put the browser into; what it is shown here is our own page.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            page = await (await browser.new_context(**context)).new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.complaints = complaints = []
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(url)
            yield page
        finally:
            await browser.close()


async def holds(page: Any, expression: str, arg: Any = None) -> None:
    """Return when JavaScript's *expression* is true in *page*; raises TimeoutError.

    Playwright's own waiting runs `eval` in the page, which the page's policy refuses, rightly.
    """
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not await page.evaluate(expression, arg):  # noqa: ASYNC110 - a page has no event for us
            await asyncio.sleep(0.05)


async def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with *page* as it is shown, one line each; skips when npm cannot bring axe-core."""
    try:
        script = (npm_packages.unpacked("axe-core") / "axe.min.js").read_text()
    except npm_packages.NpmError as error:
        pytest.skip(f"cannot check accessibility: {error}")
    await page.evaluate(script)  # not a script element: the page's own policy would refuse it, rightly
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {violation['help']} at {node['target']}: {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
