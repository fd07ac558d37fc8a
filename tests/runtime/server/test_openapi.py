"""The OpenAPI document says what the server takes: all of it, and nothing else."""

import msgspec
import pytest

from fake_engine import FakeEngine
from serving import serving
from smartspec.server.openapi import BODIES
from smartspec.server.protocol import GenerationBody


async def test_every_route_is_described_and_open_to_read() -> None:
    """Without a key; with the page on too, whose files are no API."""
    async with serving(FakeEngine(), api_key="sesame", page=True) as server:
        status, document = await server.get("/openapi.json")
        assert status == 200
        assert document["openapi"] == "3.1.0"
        assert {"/v1/completions", "/v1/chat/completions", "/v1/models/{model}", "/ping"} <= document["paths"].keys()
        assert not any(path.startswith(("/page", "/history")) or path == "/" for path in document["paths"])
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"].endswith("."), path
                assert ("requestBody" in operation) == (path in BODIES), path
                assert method == "get" or path in BODIES or path == "/v1/embeddings", path  # which only refuses
                assert ("security" in operation) == path.startswith(("/v1", "/tokenize", "/detokenize")), path


@pytest.mark.parametrize("path", BODIES)
async def test_bodies_have_the_fields_that_are_parsed(path: str) -> None:
    """One set of types serves both."""
    async with serving(FakeEngine()) as server:
        _, document = await server.get("/openapi.json")
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert schema["properties"].keys() == {field.encode_name for field in msgspec.structs.fields(BODIES[path])}
    assert "security" not in document["paths"][path]["post"]


def test_the_serving_fields_are_bounded() -> None:
    """What a request may ask of its own serving stands in the schema with its bounds and its meaning."""
    fields = msgspec.json.schema(GenerationBody)["$defs"]["GenerationBody"]["properties"]
    for name in ("priority", "timeout"):
        assert "description" in str(fields[name]), name
        assert "aximum" in str(fields[name]), name
