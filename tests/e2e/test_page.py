"""The page in a real browser, over a real server that works: numbers, colours, access, loss and return."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from browser import holds, opened, violations
from fake_engine import FakeEngine
from serve_process import ServeProcess, serve_process
from serving import serving
from smartspec.loadgen.counters import Speculation, counters

MODELS = Path(__file__).parents[2] / "examples/models"
PICTURE = os.environ.get("SMARTSPEC_PAGE_PICTURE")
"""Where to put a screenshot; `make page-picture` says docs/page.png."""
KEYS = {"SMARTSPEC_API_KEY": "sesame", "SMARTSPEC_ADMIN_KEY": "admin-sesame"}
PROMPT = "def read_lines(path):\n"
SCHEMA = '{"const": "def read_lines(path): return the lines of a file"}'


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    """The bundled pair, with keys on both ports and the page on the public one."""
    arguments = ["--draft", str(MODELS / "stdlib-draft"), "--device", "cpu", "--threads", "1", "--page"]
    with serve_process(MODELS / "stdlib-target", *arguments, environment=KEYS) as running:
        yield running.wait_ready()


@asynccontextmanager
async def under_load(server: ServeProcess, clients: int = 3) -> AsyncIterator[None]:
    """Some clients ask one thing after the other while the context lasts."""

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        for turn in range(1000):
            text = f"class Reader{number * 1000 + turn}:\n    def __init__(self, path):\n        self.path = path\n"
            body = {"prompt": text, "max_tokens": 64, "temperature": 0}
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                assert answer.status == 200

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEYS['SMARTSPEC_API_KEY']}"}) as session:
        asking = [asyncio.create_task(ask(session, number)) for number in range(clients)]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


async def sign_in(page: Any) -> None:
    """Type the admin key."""
    await page.fill("#admin-key", KEYS["SMARTSPEC_ADMIN_KEY"])
    await page.click("#key-form button")
    await page.wait_for_selector("#tiles dd")


async def test_the_page_of_a_working_server(server: ServeProcess) -> None:
    """Behind the admin key: live numbers that move, charts, acceptance, decisions; a prompt whose tokens say who
    proposed them; no violation of accessibility rules, light or dark; nothing on the console."""
    async with opened(server.admin_url, viewport={"width": 1280, "height": 900}, color_scheme="light") as page:
        await page.wait_for_selector("#key-form")
        await page.fill("#admin-key", "wrong")
        await page.click("#key-form button")
        await holds(page, "document.querySelector('#key-error').textContent !== ''")
        refused = [page.complaints.pop() for _ in range(len(page.complaints))]
        assert all("401" in complaint for complaint in refused)  # the browser's own words for the two refusals
        async with under_load(server):
            await sign_in(page)
            await holds(page, "document.querySelectorAll('#acceptance tr').length > 1")
            await holds(page, "document.querySelectorAll('#decisions li').length > 0")
            await holds(page, "parseFloat(document.querySelector('#tiles dd').textContent.replaceAll(',', '')) > 1")
            assert await page.text_content("#state-text") == "ready"
            assert "stdlib-target" in await page.text_content("#model")
            assert re.match(r"Serving \d requests?, .* tokens a second\.", await page.text_content("#sentence"))
            before = await page.text_content("#tiles")
            await page.wait_for_function(
                "before => document.querySelector('#tiles').textContent !== before", arg=before
            )
            assert await page.locator(".chart canvas").count() == 9
            await holds(page, "/median .*\\d/.test(document.querySelector('.chart:nth-child(7) .plot').ariaLabel)")
            label = await page.get_attribute(".chart:nth-child(2) .plot", "aria-label")
            assert re.search(r"measured .*\d.*; predicted .*\d", label)
            await page.click(".chart:nth-child(1) summary")
            await page.wait_for_selector(".chart:nth-child(1) table tbody tr")

            await try_prompt(page)
            assert await violations(page) == []
            await page.select_option("#theme", "dark")
            assert await violations(page) == []
            await page.select_option("#theme", "light")
            if PICTURE:
                await take_picture(page)
        assert page.complaints == []


async def try_prompt(page: Any) -> None:
    """Send the prompt in the box, and look at what comes."""
    await page.fill("#prompt", PROMPT)
    await page.fill("#max-tokens", "48")
    await page.select_option("#mode", "fixed:4")  # whether drafts pay beside this load is the machine's affair
    await page.click("#send")
    await holds(page, "!document.querySelector('#send').disabled")
    assert await page.text_content("#try-error") == ""
    tokens = await page.evaluate("[...document.querySelectorAll('#answer .t')].map(t => [t.className, t.textContent])")
    assert len(tokens) == 48
    proposed = [name for name, _ in tokens if "by-draft" in name or "by-lookup" in name]
    assert 0 < len(proposed) < 48
    steps = sum("first" in name for name, _ in tokens)
    summary = await page.text_content("#answer-summary")
    assert f"48 tokens in {steps} steps: " in summary
    assert f"{48 - len(proposed)} by target" in summary


async def test_what_a_grammar_forces_is_marked_as_such(server: ServeProcess) -> None:
    """With a JSON schema: tokens that it forced have their own mark, named in the legend, the hint and the count; a
    schema that is none is refused in words."""
    async with opened(server.url, viewport={"width": 1000, "height": 800}, color_scheme="light") as page:
        await page.wait_for_selector("#tiles dd")
        await page.fill("#api-key", KEYS["SMARTSPEC_API_KEY"])
        await page.fill("#schema", "{")
        await page.click("#send")
        await holds(page, "document.querySelector('#try-error').textContent.includes('json')")
        page.complaints.clear()  # the browser's own line about the 400
        await page.fill("#schema", SCHEMA)
        await page.click("#send")
        await holds(page, "document.querySelectorAll('#answer .t').length && !document.querySelector('#send').disabled")
        assert await page.text_content("#try-error") == ""
        forced = page.locator("#answer .by-grammar")
        count = await forced.count()
        assert count > 0
        assert re.fullmatch(r"step \d+: grammar", await forced.first.get_attribute("title"))
        assert f"{count} by grammar" in await page.text_content("#answer-summary")
        assert await page.locator(".tokens-legend .by-grammar").text_content() == "the grammar"
        colours = "n => getComputedStyle(document.querySelector('.tokens-legend .by-' + n)).borderBottomColor"
        names = ("draft", "lookup", "grammar", "target")
        assert len({await page.evaluate(colours, name) for name in names}) == len(names)
        assert await violations(page) == []
        await page.select_option("#theme", "dark")
        assert await violations(page) == []
        assert page.complaints == []


async def take_picture(page: Any) -> None:
    """What docs/page.png shows: half a minute of load, and an answer."""
    await page.evaluate("document.querySelector('.chart:nth-child(1) details').open = false")
    await page.check("input[value='60']", force=True)
    await page.wait_for_timeout(45_000)
    await page.evaluate("document.activeElement.blur()")
    await page.screenshot(path=PICTURE, full_page=True)


async def test_explanations_agree_with_what_the_server_counts(server: ServeProcess) -> None:
    """Accepted and drafted tokens of all steps are those that `/metrics` counts, the pieces are the text, and asking
    for an explanation does not change it."""
    body = {"prompt": "def parse(self, text):\n", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    wish = {"mode": "fixed", "max_tokens": 4, "explain": True}
    async with aiohttp.ClientSession(
        server.url, headers={"Authorization": f"Bearer {KEYS['SMARTSPEC_API_KEY']}"}
    ) as session:

        async def ask(**more: Any) -> dict[str, Any]:
            async with session.post("/v1/completions", json=body | more) as answer:
                choice: dict[str, Any] = (await answer.json())["choices"][0]
                return choice

        async def counted() -> Speculation:
            await asyncio.sleep(0.4)  # what is shown may be a moment old
            return Speculation.of(counters(server.get("/metrics")[1]))

        plain, before = await ask(), await counted()
        explained, after = await ask(speculation=wish), await counted()
    steps = explained["speculation"]["steps"]
    assert explained["text"] == plain["text"] == "".join(piece for step in steps for piece in step["tokens"])
    assert sum(len(step["tokens"]) for step in steps) == 40
    assert sum(step["drafted"] for step in steps) == after.drafted - before.drafted > 0
    assert sum(step["accepted"] for step in steps) == after.accepted - before.accepted > 0


async def test_the_public_page_on_a_phone(server: ServeProcess) -> None:
    """360 pixels wide it does not scroll sideways; the user's own key is asked for prompts alone, and a text that looks
    like markup stays a text."""
    async with opened(server.url, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True) as page:
        await page.wait_for_selector("#tiles dd")
        assert await page.is_hidden("#key-form")
        await page.click("#send")
        await holds(page, "document.querySelector('#try-error').textContent.includes('key')")
        page.complaints.clear()  # the browser's own line about the 401
        await page.fill("#api-key", KEYS["SMARTSPEC_API_KEY"])
        await page.fill("#prompt", "<img src=x onerror=alert(1)><b>bold</b> <script>alert(2)</script>\n")
        await page.fill("#max-tokens", "24")
        await page.click("#send")
        await holds(page, "document.querySelectorAll('#answer .t').length === 24")
        assert await page.locator("#answer :not(span)").count() == 0
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert await violations(page) == []
        assert page.complaints == []


async def test_the_page_by_keyboard_alone(server: ServeProcess) -> None:
    """Tab goes through it in reading order, from the skip link to the prompt, and Enter sends."""
    async with opened(server.url, viewport={"width": 1000, "height": 800}) as page:
        await page.wait_for_selector("#tiles dd")
        order = []
        for _ in range(60):
            await page.keyboard.press("Tab")
            order.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
            if order[-1] == "send":
                break
        assert order[:3] == ["skip", "pause", "theme"]
        assert order[-8:-1] == ["prompt", "kind", "max-tokens", "temperature", "mode", "schema", "api-key"]
        await page.keyboard.press("Enter")
        await holds(page, "document.querySelector('#try-error').textContent !== ''")


async def test_a_server_that_dies_and_returns() -> None:
    """The page says that it is disconnected, aloud too, and goes on by itself when a server is there again."""
    async with serving(FakeEngine()) as first:
        address = URL(str(first.admin._base_url))
        async with opened(str(address), reduced_motion="reduce") as page:
            await holds(page, "document.querySelector('#state-text').textContent === 'ready'")
            first.stop.set()
            await first.task
            await holds(page, "document.querySelector('#state').dataset.state === 'disconnected'")
            assert "Disconnected" in await page.text_content("#announce")
            async with serving(FakeEngine(), admin_port=address.port):
                await holds(page, "document.querySelector('#state').dataset.state === 'ready'")
                assert "Connected again" in await page.text_content("#announce")
                await page.wait_for_selector("#tiles dd")
            assert all("ERR_CONNECTION" in complaint for complaint in page.complaints)
