"""The page: its files and headers, who may see what on which port, and the history that it shows."""

import asyncio
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pytest

import npm_packages
from fake_engine import FakeEngine
from serving import Served, serving
from smartspec.metrics import LATENCY_BUCKETS_SECONDS, Histogram
from smartspec.policy.load import LoadReport
from smartspec.policy.types import Choice, Decision, StepFeatures, StepSeconds
from smartspec.scheduling.output import StepStats
from smartspec.server.page import history
from smartspec.server.page.history import History
from smartspec.server.page.routes import NAMES, PAGE_PATHS, STATIC_PATHS

STATIC = files("smartspec.server.page") / "static"


async def get(server: Served, path: str, *, port: str = "admin", **headers: str) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and text of a GET."""
    session = server.admin if port == "admin" else server.public
    async with session.get(path, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


async def test_the_admin_port_has_the_page_without_a_key_and_its_numbers_with_one() -> None:
    """What is the same everywhere is open; what this server does is not."""
    async with serving(FakeEngine(), admin_key="secret") as server:
        found = {path: (await get(server, path))[0] for path in PAGE_PATHS}
        assert found == {path: 200 if path in STATIC_PATHS else 401 for path in PAGE_PATHS}
        assert (await get(server, "/history", Authorization="Bearer secret"))[0] == 200


async def test_the_public_port_has_no_page_unless_asked() -> None:
    """Not a file of it, nor its numbers."""
    async with serving(FakeEngine()) as server:
        assert {(await get(server, path, port="public"))[0] for path in PAGE_PATHS} == {404}


async def test_the_public_page_opens_nothing_else() -> None:
    """With a key on the API the page and its counts are open, prompts are not, and no admin route exists."""
    async with serving(FakeEngine(), page=True, api_key="k", admin_key="a") as server:
        assert {(await get(server, path, port="public"))[0] for path in PAGE_PATHS} == {200}
        assert (await server.post("/v1/completions", prompt="a"))[0] == 401
        for path in ("/policy", "/speculation", "/load", "/drain"):
            assert (await get(server, path, port="public", Authorization="Bearer k"))[0] == 404
        _, answer = await server.get("/history")
    assert answer["port"] == "public"
    assert set(answer["server"]) == {"model", "state", "version"}


@pytest.mark.parametrize("path", sorted(STATIC_PATHS))
async def test_every_file_comes_with_headers_that_bind_the_browser(path: str) -> None:
    """Nothing inline, nothing from elsewhere, no framing, no guessing of types; a known file is not sent again."""
    async with serving(FakeEngine()) as server:
        status, headers, text = await get(server, path)
        again = await get(server, path, **{"If-None-Match": headers["ETag"]})
    assert status == 200
    assert text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert (again[0], again[2]) == (304, "")


def test_the_page_has_no_markup_made_of_texts() -> None:
    """No script of ours parses a text as HTML or as code; nothing is inline, which the policy would block."""
    for name in NAMES:
        if name.endswith(".js") and not name.startswith("vendor/"):
            script = (STATIC / name).read_text()
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\bsrc=)", page)
    assert "http" not in page


async def test_other_sites_cannot_use_the_admin_port_through_a_browser() -> None:
    """A page somebody has open elsewhere must not drain this server; following a link to the page is fine."""
    async with serving(FakeEngine()) as server:
        for site, mode, method, path, status in (
            ("cross-site", "no-cors", "POST", "/drain", 403),
            ("same-site", "cors", "GET", "/history", 403),
            ("cross-site", "navigate", "GET", "/", 200),
            ("same-origin", "cors", "GET", "/history", 200),
            ("none", "navigate", "GET", "/", 200),
        ):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            async with server.admin.request(method, path, headers=headers) as answer:
                assert answer.status == status, (site, mode, path)
        assert (await server.get("/ready"))[0] == 200


@pytest.mark.parametrize(
    ("host", "admin_key", "status"),
    [
        ("evil.example:8001", None, 403),
        ("localhost.evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("[", None, 403),
        ("", None, 403),
        ("localhost:8001", None, 200),
        ("LOCALHOST", None, 200),
        ("app.localhost:8001", None, 200),
        ("127.0.0.1:8001", None, 200),
        ("[::1]:8001", None, 200),
        ("evil.example:8001", "secret", 200),
    ],
)
async def test_a_name_of_another_site_that_points_here_is_refused(
    host: str, admin_key: str | None, status: int
) -> None:
    """To a browser such a site's pages and this server are one site; a key, which the site does not have, will do."""
    async with serving(FakeEngine(), admin_key=admin_key) as server:
        assert (await get(server, "/load", Host=host, Authorization="Bearer secret"))[0] == status


async def test_a_prompt_can_be_tried_on_the_admin_port() -> None:
    """One origin for the page and its prompt, behind the admin key."""
    async with serving(FakeEngine(), admin_key="secret", api_key="other") as server:
        for key, status in (("secret", 200), ("other", 401)):
            body: dict[str, Any] = {"prompt": "abc", "max_tokens": 3, "speculation": {"explain": True}}
            headers = {"Authorization": f"Bearer {key}"}
            async with server.admin.post("/v1/completions", json=body, headers=headers) as answer:
                assert answer.status == status


async def test_history_grows_while_the_server_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come by themselves; `after` gives only newer ones; nonsense is a 400 that names it."""
    monkeypatch.setattr(history, "INTERVAL_SECONDS", 0.02)
    async with serving(FakeEngine()) as server:
        await server.post("/v1/completions", prompt="abc", max_tokens=9)
        rows: list[dict[str, Any]] = []
        while not any(row["decision"] for row in rows) or len(rows) < 3:
            async with server.admin.get("/history", params={"after": rows[-1]["index"] if rows else -1}) as answer:
                rows += (await answer.json())["rows"]
        assert [row["index"] for row in rows] == list(range(len(rows)))
        assert sum(row["tokens_per_second"] * row["seconds"] for row in rows) == pytest.approx(9, rel=0.1)
        assert (await get(server, "/history?after=x"))[0] == 400


async def test_history_is_there_while_the_model_loads() -> None:
    """A page that was opened too early says so, and not an error."""
    gate = asyncio.Event()

    async def starting() -> FakeEngine:
        await gate.wait()
        return FakeEngine()

    async with serving(starting=starting()) as server:
        async with server.admin.get("/history") as answer:
            assert (await answer.json())["server"]["state"] == "loading"
        gate.set()


def step(k: tuple[tuple[str, int], ...], accepted: tuple[int, ...], *, kept: int, seconds: float = 0.01) -> StepStats:
    """A step of as many requests as *k* has entries."""
    drafted = {
        "draft": sum(n for name, n in k if name == "draft"),
        "lookup": sum(n for name, n in k if name == "lookup"),
    }
    decision = Decision(
        {str(index): Choice("draft", n) for index, (_, n) in enumerate(k) if n},
        predicted_seconds=2 * seconds, predicted_tokens=kept, baseline_tokens=len(k), reason="because",
    )  # fmt: skip
    return StepStats(
        decision, StepFeatures(1, 1, len(k)), StepSeconds(0.0, seconds, 0.0), kept, len(k), 0, 0.5,
        drafted_by_proposer=drafted, accepted_by_proposer={"draft": sum(accepted)}, k_by_request=k,
        accepted_by_position=accepted,
    )  # fmt: skip


def test_a_row_sums_up_its_steps() -> None:
    """Rates by the wall clock, goodput by step time, k by proposer, positions by how many proposals reached them."""
    now = 100.0
    kept = History(lambda: now)
    kept.observe_step(step((("draft", 4), ("lookup", 2), ("none", 0)), (2, 1), kept=6))
    kept.observe_step(step((("draft", 1),), (1,), kept=2))
    now = 102.0
    counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
    counts[5] = 10
    seen = Histogram(tuple(counts))
    load = LoadReport("m", "0", "ready", num_requests_running=3, requests_total=4, ttft=seen, e2e=seen)
    kept.close_row(load)
    [row] = kept.rows()
    assert (row.tokens_per_second, row.requests_per_second, row.running) == (4.0, 2.0, 3)
    assert row.goodput_measured == pytest.approx(8 / 0.02)
    assert row.goodput_predicted == pytest.approx(8 / 0.04)
    assert row.k_by_proposer == {"draft": 5 / 4, "lookup": 2 / 4}
    assert row.tokens_per_step == pytest.approx((4 + 4) / 4)
    assert (row.drafted_by_position, row.accepted_by_position) == ([3, 2, 1, 1], [3, 1])
    assert row.ttft is not None
    assert LATENCY_BUCKETS_SECONDS[4] <= row.ttft.p50 <= row.ttft.p95 <= LATENCY_BUCKETS_SECONDS[5]
    assert (row.e2e, row.tpot) == (row.ttft, None)
    assert row.decision is not None
    assert (row.decision.reason, row.decision.requests, row.decision.mean_k) == ("because", 1, 1.0)


def test_an_idle_row_says_nothing_of_what_was_not_measured() -> None:
    """None, not zero: a chart has a gap there."""
    kept = History(lambda: 0.0)
    kept.close_row(LoadReport("m", "0", "ready"))
    [row] = kept.rows()
    assert (row.tokens_per_second, row.busy) == (0.0, 0.0)
    assert {row.goodput_measured, row.goodput_predicted, row.tokens_per_step, row.ttft, row.decision} == {None}


def test_history_forgets() -> None:
    """Ten minutes, however long the server lives."""
    kept = History(lambda: 0.0)
    for _ in range(350):
        kept.close_row(LoadReport("m", "0", "ready"))
    assert [row.index for row in kept.rows()] == list(range(50, 350))
    assert [row.index for row in kept.rows(after=347)] == [348, 349]


def test_the_chart_library_is_the_one_that_npm_has() -> None:
    """Byte for byte the files of the package whose integrity the lock file names."""
    try:
        package = npm_packages.unpacked("uplot")
    except npm_packages.NpmError as error:
        pytest.skip(f"cannot compare with npm's package: {error}")
    for name, path in npm_packages.VENDORED.items():
        assert (npm_packages.VENDOR / name).read_bytes() == (package / path).read_bytes(), name
    vendored = {str(path.relative_to(npm_packages.VENDOR)) for path in npm_packages.VENDOR.rglob("*") if path.is_file()}
    assert vendored == set(npm_packages.VENDORED)
