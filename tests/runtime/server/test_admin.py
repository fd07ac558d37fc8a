"""The admin port: load, policy and its generations, behind a key."""

from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving
from smartspec.config import ConfigError
from smartspec.policy.load import decode_load
from smartspec.policy.settings import PolicySettings, encode_settings


async def test_load_is_a_load_report() -> None:
    """What `/load` answers is what the operator decodes."""
    async with serving(FakeEngine()) as server, server.admin.get("/load") as response:
        report = decode_load(await response.read())
    assert (report.model, report.state) == ("fake", "ready")


async def test_policy_is_replaced_and_echoed() -> None:
    """PUT answers with what is in force, GET and `/load` agree."""
    settings = PolicySettings(generation=4, policy="batch", tpot_target_seconds=0.05, reason="slo")
    async with serving(FakeEngine()) as server:
        async with server.admin.put("/policy", data=encode_settings(settings)) as response:
            assert response.status == 200
            put = await response.json()
        async with server.admin.get("/policy") as response:
            assert await response.json() == put
        async with server.admin.get("/load") as response:
            assert (await response.json())["generation"] == 4
    assert (put["policy"], put["tpot_target_seconds"]) == ("batch", 0.05)


async def test_older_policy_is_409() -> None:
    """A generation that is not newer changes nothing; the same settings again are fine."""
    async with serving(FakeEngine()) as server:
        for generation, policy, status in ((4, "batch", 200), (4, "batch", 200), (3, "off", 409), (4, "off", 409)):
            async with server.admin.put("/policy", json={"generation": generation, "policy": policy}) as response:
                assert response.status == status
        async with server.admin.get("/policy") as response:
            assert (await response.json())["policy"] == "batch"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"generation": -1}, "generation"),
        ({"policy": "best"}, "policy"),
        ({"max_speculative_tokens": 99}, "max_speculative_tokens"),
        ({"tpot_target_seconds": 0}, "tpot_target_seconds"),
        ({"tpot": 1}, "tpot"),
        ({"priors": {}}, "priors.key"),
        (
            {"priors": {"key": "k", "latency": {"coefficients": {"target.step": 1e308}, "weight": 1}}},
            "priors.latency.coefficients[...]",
        ),
        ({"priors": {"key": "k", "latency": {"coefficients": {}, "weight": 1e300}}}, "priors.latency.weight"),
        (
            {
                "priors": {
                    "key": "k",
                    "acceptance": [{"proposer": "draft", "verifier": "greedy", "rates": [0.5], "weights": [1e308]}],
                }
            },
            "priors.acceptance[0].weights[0]",
        ),
        ({"tpot_target_seconds": 1e308}, "tpot_target_seconds"),
        ([], None),
    ],
)
async def test_bad_policy_is_400(body: Any, param: str | None) -> None:
    """The field at fault is named, unknown ones included."""
    async with serving(FakeEngine()) as server, server.admin.put("/policy", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_everything_but_probes_wants_the_key() -> None:
    """Load, policy, drain and metrics are the operator's; health and readiness are everyone's."""
    async with serving(FakeEngine(), admin_key="sesame", api_key="other") as server:
        for method, path in (
            ("GET", "/load"), ("GET", "/policy"), ("PUT", "/policy"), ("GET", "/speculation"), ("POST", "/drain"),
            ("GET", "/metrics"),
        ):  # fmt: skip
            for headers in ({}, {"Authorization": "Bearer other"}):
                async with server.admin.request(method, path, headers=headers) as response:
                    assert response.status == 401, path
        for path in ("/health", "/ready"):
            async with server.admin.get(path) as response:
                assert response.status == 200
        async with server.admin.get("/speculation", headers={"Authorization": "Bearer sesame"}) as response:
            assert response.status == 200


async def test_keyless_admin_port_must_be_loopback() -> None:
    """Without a key the port would let anyone drain the replica: refuse to start."""
    with pytest.raises(ConfigError, match=r"admin_host is 0\.0\.0\.0"):
        async with serving(FakeEngine(), admin_host="0.0.0.0"):
            pass
    async with serving(FakeEngine(), admin_host="0.0.0.0", admin_key="k"):
        pass
