"""Forms, tools and predictions by OpenAI's own client, on the bundled pair: what programs that rely on them meet."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

import tool_templates
from serve_process import ServeProcess, serve_process

ROOT = Path(__file__).parents[2]
MODEL = "stdlib-target"
MESSAGES: list[Any] = [{"role": "user", "content": "class Person:"}]
MODES: tuple[dict[str, Any], ...] = ({"mode": "off"}, {"mode": "fixed", "max_tokens": 5}, {"mode": "auto"})


class Address(BaseModel):
    """Where somebody lives."""

    model_config = ConfigDict(extra="forbid")

    street: Annotated[str, Field(max_length=12)]
    number: Annotated[int, Field(ge=0, le=999)]


class Person(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=12)]
    kind: Literal["customer", "supplier"]
    addresses: Annotated[list[Address], Field(max_length=2)]
    note: Annotated[str, Field(max_length=8)] | None


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Annotated[str, Field(max_length=16)]
    unit: Literal["celsius", "fahrenheit"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """`smartspec serve` of the bundled pair, under a template that knows tools."""
    target = tmp_path_factory.mktemp("models") / MODEL
    target.mkdir()
    for file in (ROOT / "examples" / "models" / MODEL).iterdir():
        (target / file.name).symlink_to(file)
    (target / "chat_template.jinja").unlink()
    (target / "chat_template.jinja").write_text(tool_templates.HERMES, encoding="utf-8")
    draft = str(ROOT / "examples" / "models" / "stdlib-draft")
    with serve_process(target, "--draft", draft, "--threads", "1", "--num-blocks", "512") as running:
        yield running.wait_ready()


@pytest.fixture
def client(server: ServeProcess) -> Iterator[openai.OpenAI]:
    """The synchronous client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_pydantic_gets_its_own(client: openai.OpenAI) -> None:
    """`parse` gives an object of the class, greedy and by several seeds."""
    for seed in (None, 1, 2, 3):
        answer = client.chat.completions.parse(
            model=MODEL, messages=MESSAGES, response_format=Person, max_completion_tokens=400,
            temperature=0.0 if seed is None else 1.0, seed=seed,
        )  # fmt: skip
        [choice] = answer.choices
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Person)


def test_a_form_is_the_same_with_and_without_speculation(client: openai.OpenAI) -> None:
    """Greedy and seeded: every mode gives the same text, token for token."""
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}}
    for temperature, seed in ((0.0, None), (1.0, 4)):
        texts = []
        for mode in MODES:
            answer = client.chat.completions.create(
                model=MODEL, messages=MESSAGES, response_format=response_format, max_completion_tokens=300,
                temperature=temperature, seed=seed, extra_body={"speculation": mode},
            )  # fmt: skip
            texts.append(answer.choices[0].message.content)
            Person.model_validate_json(texts[-1] or "")
        assert len(set(texts)) == 1


def test_a_cut_answer_says_so(client: openai.OpenAI) -> None:
    """At max_tokens the JSON is not whole, `finish_reason` is length, and OpenAI's client raises its own error."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=MESSAGES, response_format=Person, max_completion_tokens=6, temperature=0.0
        )


@pytest.mark.parametrize(
    ("form", "check"),
    [
        ({"choice": ["red", "green", "blue"]}, lambda text: text in ("red", "green", "blue")),
        ({"regex": "[0-9]{4}-[0-9]{2}"}, lambda text: len(text) == 7 and text[4] == "-"),
        ({"grammar": 'start: "<" ("a" | "b"){2,3} ">"'}, lambda text: text[0] == "<" and text[-1] == ">"),
        (
            {"json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
            lambda text: len(json.loads(text)) <= 3,
        ),
    ],
)
def test_other_forms_on_both_endpoints(client: openai.OpenAI, form: dict[str, Any], check: Any) -> None:
    """A choice, a regular expression, a grammar, a schema."""
    extra = {"structured_outputs": form}
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=64, seed=1, extra_body=extra
    )
    assert check(chat.choices[0].message.content)
    text = client.completions.create(model=MODEL, prompt="x = ", max_tokens=64, seed=2, n=3, extra_body=extra)
    assert all(check(choice.text) and choice.finish_reason == "stop" for choice in text.choices)


def test_any_object_is_json(client: openai.OpenAI) -> None:
    """`json_object`: an object, if it comes to its end; else it was cut."""
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format={"type": "json_object"}, max_completion_tokens=120, seed=1
    )
    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_required_and_named_tools_are_called(client: openai.OpenAI) -> None:
    """By a model that has never seen a tool: valid arguments, parsed by pydantic, whole and streamed alike."""
    tools = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Address)]
    for choice in ("required", {"type": "function", "function": {"name": "GetWeather"}}):
        options: Any = {
            "model": MODEL, "messages": MESSAGES, "tools": tools, "tool_choice": choice, "seed": 3,
            "max_completion_tokens": 300, "parallel_tool_calls": False,
        }  # fmt: skip
        [whole] = client.chat.completions.parse(**options).choices
        assert whole.finish_reason == "tool_calls"
        assert not whole.message.content
        [call] = whole.message.tool_calls or []
        assert isinstance(
            call.function.parsed_arguments, (GetWeather,) if choice != "required" else (GetWeather, Address)
        )
        with client.chat.completions.stream(**options) as stream:
            [final] = stream.get_final_completion().choices
        [streamed] = final.message.tool_calls or []
        assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
        assert final.finish_reason == "tool_calls"


def test_a_conversation_goes_on_after_a_call(client: openai.OpenAI) -> None:
    """The call and its result come back in the next turn."""
    tools: Any = [openai.pydantic_function_tool(GetWeather)]
    first = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=tools, tool_choice="required", seed=1, max_completion_tokens=200,
        parallel_tool_calls=False,
    ).choices[0].message  # fmt: skip
    assert first.tool_calls
    turns: Any = [*MESSAGES, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=tools, max_completion_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_bad_forms_are_the_client_s_errors(client: openai.OpenAI) -> None:
    """A 400 that names the field and says what is wrong, as the client's own exception."""
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=schema)
    assert refused.value.param == "response_format.json_schema.schema"
    assert "strange" in refused.value.message


def test_a_heavy_grammar_holds_up_nobody(client: openai.OpenAI, server: ServeProcess) -> None:
    """While large schemas are compiled, another client's tokens come as before."""

    def heavy(number: int) -> int:
        properties = {f"p{number}_{i}": {"type": "string", "pattern": f"^[a-z{i % 10}]{{1,40}}$"} for i in range(300)}
        form = {"structured_outputs": {"json": {"type": "object", "properties": properties}}}
        raw = client.completions.with_raw_response.create(model=MODEL, prompt="x", max_tokens=1, extra_body=form)
        return raw.status_code

    def gaps() -> float:
        options: Any = {"extra_body": {"ignore_eos": True}, "temperature": 0.0}
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=60, stream=True, **options)
        times = [time.perf_counter() for _ in stream]
        return max(after - before for before, after in pairwise(times))

    usual = gaps()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(heavy, number) for number in range(3)]
        longest = gaps()
        assert [one.result() for one in waiting] == [200] * 3
    assert longest < max(0.5, 5 * usual)


def counted(server: ServeProcess, name: str, *labels: str) -> float:
    """A counter's value now; 0 if it was never counted."""
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith(f"{name}{{") and all(label in line for label in labels):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_an_edit_takes_far_fewer_steps_with_a_prediction(client: openai.OpenAI, server: ServeProcess) -> None:
    """Seeded text that the client knows but for a line: the same text in half the steps, and usage says why; a
    prediction that is all wrong changes neither text nor speed by much."""
    prompt: list[Any] = [{"role": "user", "content": "def read(self, path):\n    with open(path) as file:\n"}]

    def ask(prediction: str | None) -> tuple[Any, float]:
        before = counted(server, "smartspec_steps_total")
        answer = client.chat.completions.create(
            model=MODEL, messages=prompt, temperature=0.8, seed=7, max_completion_tokens=160,
            prediction=openai.omit if prediction is None else {"type": "content", "content": prediction},
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        return answer, counted(server, "smartspec_steps_total") - before

    ask(None)
    plain, plain_steps = ask(None)
    text = plain.choices[0].message.content
    edited, edited_steps = ask(text[: len(text) // 3] + "NO SUCH THING " + text[len(text) // 3 + 20 :])
    wrong, wrong_steps = ask("something else entirely, which is not in it at all. " * 8)
    assert edited.choices[0].message.content == wrong.choices[0].message.content == text
    assert edited_steps < 0.6 * plain_steps
    assert wrong_steps < 1.3 * plain_steps
    details = edited.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 80
    assert details.rejected_prediction_tokens < 40


def test_what_a_grammar_forces_is_proposed_and_kept(client: openai.OpenAI, server: ServeProcess) -> None:
    """Names of fields come by the grammar's own proposals, and nearly all of those are accepted."""
    schema = {"properties": {f"a_rather_long_name_{i}": {"type": "boolean"} for i in range(6)}}
    schema |= {"type": "object", "additionalProperties": False, "required": list(schema["properties"])}
    names = "smartspec_draft_tokens_total", "smartspec_accepted_tokens_total"
    before = [counted(server, name, 'proposer="grammar"') for name in names]
    answer = client.completions.create(
        model=MODEL, prompt="x = ", max_tokens=300, seed=1, extra_body={"structured_outputs": {"json": schema}}
    )
    assert set(json.loads(answer.choices[0].text)) == set(schema["properties"])
    drafted, accepted = (counted(server, n, 'proposer="grammar"') - b for n, b in zip(names, before, strict=True))
    assert drafted > 20
    assert accepted > 0.8 * drafted


def test_a_grammar_that_becomes_too_complex_ends_as_an_error(client: openai.OpenAI) -> None:
    """Never as a text that looks whole; and the server is well afterwards."""
    extra = {"structured_outputs": {"grammar": 'start: /[a-z]{40}/ rest\nrest: ("a" | rest)* rest'}}

    def ask(stream: bool) -> None:
        answer: Any = client.completions.create(
            model=MODEL, prompt="x", max_tokens=200, seed=1, stream=stream, extra_body=extra
        )
        list(answer)

    for stream in (False, True):
        with pytest.raises(openai.APIError) as failed:
            ask(stream)
        assert "too complex" in str(failed.value)
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices


def test_the_log_has_no_traceback(server: ServeProcess) -> None:
    """After all that."""
    assert "Traceback" not in "".join(server.log)
