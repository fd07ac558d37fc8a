"""Every way to ask for a form reaches the engine as one grammar; what makes no sense is refused by name."""

import json
from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
ASKED: list[tuple[dict[str, Any], str, Any]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
     "json_schema", SCHEMA),
    ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
    ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
    ({"structured_outputs": {"json_object": True}}, "json_schema", {"type": "object"}),
    ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
    ({"structured_outputs": {"regex": "[ab]+"}}, "regex", "[ab]+"),
    ({"guided_regex": "[ab]+"}, "regex", "[ab]+"),
    ({"structured_outputs": {"choice": ["é", "no"]}}, "choice", ["é", "no"]),
    ({"guided_choice": ["yes", "no"]}, "choice", ["yes", "no"]),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
    ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
]  # fmt: skip
ENDPOINTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"prompt": "hi"}),
]


@pytest.mark.parametrize(("asked", "kind", "source"), ASKED)
@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_every_way_to_ask_is_one_grammar(
    path: str, body: dict[str, Any], asked: dict[str, Any], kind: str, source: Any
) -> None:
    """Each of three choices has a rule of its own; the order of a schema's properties is kept."""
    engine = FakeEngine()
    async with serving(engine) as server:
        status, _ = await server.post(path, n=3, max_tokens=4, **body, **asked)
        assert status == 200
    [spec] = engine.grammars
    assert spec.kind == kind
    if kind in ("json_schema", "choice"):
        assert json.dumps(json.loads(spec.source)) == json.dumps(source)
    else:
        assert spec.source == source
    assert len({id(request.rule) for request in engine.requests}) == 3


@pytest.mark.parametrize("asked", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": {}},
                                   {"guided_json": None, "response_format": None}])  # fmt: skip
async def test_no_form_is_no_grammar(asked: dict[str, Any]) -> None:
    """Text is the default."""
    engine = FakeEngine()
    async with serving(engine) as server:
        status, _ = await server.post("/v1/completions", prompt="hi", max_tokens=4, **asked)
        assert status == 200
    assert engine.grammars == []
    assert engine.requests[0].rule is None


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}}},
         "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "wrong"}}, "structured_outputs.regex"),
        ({"guided_grammar": "wrong"}, "guided_grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
         "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_json": 5}, "guided_json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_what_makes_no_sense_is_refused_by_name(
    path: str, body: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    """A 400 that says which field, before anything is generated."""
    engine = FakeEngine()
    async with serving(engine) as server:
        status, answer = await server.post(path, **body, **asked)
    assert (status, answer["error"]["param"]) == (400, param)
    assert param in answer["error"]["message"]
    assert engine.requests == []


async def test_the_prediction_is_what_the_engine_drafts_from() -> None:
    """A text or its parts become tokens; usage says what came of them, and says nothing where nothing was predicted."""
    engine, body = FakeEngine(), ENDPOINTS[0][1]
    async with serving(engine) as server:
        for content in ("def f", [{"type": "text", "text": "def"}, {"type": "text", "text": " f"}]):
            prediction = {"type": "content", "content": content}
            _, answer = await server.post("/v1/chat/completions", max_tokens=4, prediction=prediction, **body)
            assert set(answer["usage"]["completion_tokens_details"]) == {
                "accepted_prediction_tokens", "rejected_prediction_tokens",
            }  # fmt: skip
        _, answer = await server.post("/v1/chat/completions", max_tokens=4, **body)
        assert "completion_tokens_details" not in answer["usage"]
        status, answer = await server.post("/v1/chat/completions", prediction={"type": "plan", "content": "x"}, **body)
        assert (status, answer["error"]["param"]) == (400, "prediction.type")
        status, answer = await server.post(
            "/v1/completions", prompt="x", prediction={"type": "content", "content": "x"}
        )
        assert (status, answer["error"]["param"]) == (400, "prediction")
    drafted_from = [engine.tokenizer.decode(request.prediction_token_ids) for request in engine.requests]
    assert drafted_from == ["def f", "def f", ""]


async def test_embeddings_are_refused_with_the_reason() -> None:
    """A model that generates text has none to give."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/embeddings", model="fake", input="x")
    assert (status, answer["error"]["param"]) == (400, "model")
    assert "causal language model" in answer["error"]["message"]
