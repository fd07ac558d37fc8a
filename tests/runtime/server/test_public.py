"""The small routes: models, version, tokenize and detokenize."""

from fake_engine import FakeEngine
from serving import serving
from smartspec import __version__


async def test_models_say_what_was_loaded() -> None:
    """Beside OpenAI's fields: length, attention, proposers, and whether seeds alone decide the text."""
    async with serving(FakeEngine()) as server:
        _, models = await server.get("/v1/models")
        status, model = await server.get("/v1/models/fake")
    assert models == {"object": "list", "data": [model]}
    assert status == 200
    assert model["id"] == "fake"
    assert (model["max_model_len"], model["attention"], model["invariant"]) == (256, "paged", True)
    assert model["proposers"] == ["draft", "lookup"]


async def test_a_ping_is_answered_without_a_key() -> None:
    """As load balancers and SageMaker ask whether the process works."""
    async with serving(FakeEngine(), api_key="sesame") as server:
        assert await server.get("/ping") == await server.get("/health") == (200, {"status": "ok"})


async def test_version_is_the_package_s() -> None:
    """So that a fleet can be asked what runs."""
    async with serving(FakeEngine()) as server:
        assert await server.get("/version") == (200, {"version": __version__})


async def test_tokenize_and_back() -> None:
    """Prompts and conversations become ids; ids become text."""
    async with serving(FakeEngine()) as server:
        _, answer = await server.post("/tokenize", prompt="ab")
        assert answer == {"count": 3, "max_model_len": 256, "tokens": [1, 97, 98]}
        _, answer = await server.post("/tokenize", prompt="ab", add_special_tokens=False)
        assert answer["tokens"] == [97, 98]
        _, answer = await server.post("/tokenize", messages=[{"role": "user", "content": "a"}])
        assert "".join(map(chr, answer["tokens"])) == "user: a\nassistant: "
        _, answer = await server.post("/detokenize", tokens=[97, 98])
        assert answer == {"prompt": "ab"}


async def test_tokenize_wants_one_of_two() -> None:
    """Neither or both of prompt and messages is an error, and so is an id no token has."""
    async with serving(FakeEngine()) as server:
        assert (await server.post("/tokenize"))[0] == 400
        for token, param in ((2**40, "tokens[0]"), (0x110000, "tokens")):
            status, answer = await server.post("/detokenize", tokens=[token])
            assert (status, answer["error"]["param"]) == (400, param)
