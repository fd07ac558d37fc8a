"""LangChain's `ChatOpenAI` against `smartspec serve` on the bundled pair: what agents and chains rely on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, SecretStr

from serve_process import ServeProcess, serve_process

ROOT = Path(__file__).parents[2]
MODEL = "stdlib-target"


class Car(BaseModel):
    """A car."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "blue"]
    used: bool


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    """`smartspec serve` of the bundled pair, shared by this module's tests."""
    models = ROOT / "examples" / "models"
    draft = str(models / "stdlib-draft")
    with serve_process(models / MODEL, "--draft", draft, "--threads", "1", "--num-blocks", "512") as running:
        yield running.wait_ready()


@pytest.fixture
def access(server: ServeProcess) -> dict[str, Any]:
    """Where LangChain finds the server."""
    return {"base_url": f"{server.url}/v1", "api_key": SecretStr("x"), "model": MODEL, "max_retries": 0}


@pytest.fixture
def chat(access: dict[str, Any]) -> ChatOpenAI:
    """A greedy chat model."""
    return ChatOpenAI(**access, temperature=0, max_completion_tokens=64, stream_usage=True)


def test_answers_and_streams_alike(chat: ChatOpenAI) -> None:
    """A stream's pieces add up to the whole answer: text, reason, and usage once."""
    whole = chat.invoke("def main():")
    pieces = list(chat.stream("def main():"))
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    assert len(pieces) > 3
    assert isinstance(total, AIMessageChunk)
    assert total.content == whole.content
    assert whole.response_metadata["finish_reason"] == total.response_metadata["finish_reason"] == "length"
    assert total.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == whole.response_metadata["token_usage"]["completion_tokens"] == 64


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]) -> None:
    """`with_structured_output` gives an object of the class, by a form or by a tool."""
    assert isinstance(chat.with_structured_output(Car, method=method).invoke("a car"), Car)


def test_tools_take_their_turn(chat: ChatOpenAI) -> None:
    """A bound tool is called, streamed or not, and its result goes back for an answer."""
    bound = chat.bind_tools([weather], tool_choice="weather", strict=True)
    messages: list[BaseMessage] = [HumanMessage("weather in Rome")]
    answer = bound.invoke(messages)
    streamed = None
    for piece in bound.stream(messages):
        streamed = piece if streamed is None else streamed + piece
    assert isinstance(streamed, AIMessageChunk)
    assert [call["args"] for call in streamed.tool_calls] == [call["args"] for call in answer.tool_calls]
    [call] = answer.tool_calls
    messages += [answer, weather.invoke(call)]
    assert str(messages[-1].content).startswith("sunny in")
    assert chat.invoke(messages).content


def test_completions(access: dict[str, Any]) -> None:
    """The older `OpenAI` class: several prompts in one request, and a stream, with our own field beside."""
    model = OpenAI(**access, temperature=0, max_tokens=12, extra_body={"speculation": {"mode": "off"}})
    result = model.generate(["def ", "class "])
    assert [len(generations) for generations in result.generations] == [1, 1]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] <= 24
    assert "".join(model.stream("def ")) == result.generations[0][0].text
