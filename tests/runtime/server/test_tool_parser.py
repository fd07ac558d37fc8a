"""Tool calls are found in every family's format, however the text is cut into pieces, and markup is never content."""

import json
from itertools import count, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smartspec.server.tool_formats import GENERIC, HERMES, LLAMA_3, MISTRAL, MISTRAL_NAMES, MISTRAL_SPACED, ToolFormat
from smartspec.server.tool_parser import CallDelta, Parsed, ToolParser

NAMES = frozenset({"get_weather", "add"})
WEATHER = {"city": 'Paris "}{" \\ <tool_call>', "days": [1, {"a": None}]}
ADD = {"x": -1.5e3, "y": 2}
ARGUMENTS = json.dumps(WEATHER), json.dumps(ADD)


def call(name: str, arguments: str, key: str = "arguments") -> str:
    """A call as JSON."""
    return f'{{"name": "{name}", "{key}": {arguments}}}'


TWO_CALLS: dict[str, tuple[ToolFormat, str, str]] = {
    "hermes": (
        HERMES,
        "Let me see.",
        "Let me see.\n<tool_call>\n"
        + call("get_weather", ARGUMENTS[0])
        + "\n</tool_call>\n<tool_call>\n"
        + call("add", ARGUMENTS[1])
        + "\n</tool_call>\n",
    ),
    "llama": (
        LLAMA_3,
        "",
        f"<|python_tag|>{call('get_weather', ARGUMENTS[0], 'parameters')}; {call('add', ARGUMENTS[1], 'parameters')}",
    ),
    "mistral": (
        MISTRAL,
        "Yes",
        f"Yes[TOOL_CALLS] [{call('get_weather', ARGUMENTS[0])}, {call('add', ARGUMENTS[1])}]",
    ),
    "mistral names": (
        MISTRAL_NAMES,
        "",
        f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS[0]}[TOOL_CALLS]add{ARGUMENTS[1]}",
    ),
    "generic": (GENERIC, "", f"{call('get_weather', ARGUMENTS[0])}\n{call('add', ARGUMENTS[1])}"),
    "generic array": (GENERIC, "", f" [{call('get_weather', ARGUMENTS[0])},\n {call('add', ARGUMENTS[1])}]\n"),
}


def read(tool_format: ToolFormat, pieces: list[str], *, parallel: bool = True) -> tuple[list[Parsed], int]:
    """What a parser makes of *pieces*, and how many calls it saw."""
    ids = count()
    parser = ToolParser(tool_format, NAMES, lambda: f"id-{next(ids)}", parallel=parallel)
    return [*(parser.push(piece) for piece in pieces), parser.finish()], parser.num_calls


def joined(news: list[Parsed]) -> tuple[str, list[tuple[str | None, str | None, str]]]:
    """Content, and each call's id, name and arguments; each call's news must begin with its name."""
    calls: list[tuple[str | None, str | None, str]] = []
    for parsed in news:
        for delta in parsed.calls:
            if delta.index == len(calls):
                assert delta.name is not None
                calls.append((delta.id, delta.name, delta.arguments))
            else:
                assert delta.index == len(calls) - 1
                assert (delta.id, delta.name) == (None, None)
                calls[-1] = (*calls[-1][:2], calls[-1][2] + delta.arguments)
    return "".join(parsed.content for parsed in news), calls


def cut(text: str, places: list[int]) -> list[str]:
    """*text* in pieces."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("family", TWO_CALLS)
@given(places=st.lists(st.integers(0, 10_000), max_size=12))
def test_two_calls_in_any_pieces(family: str, places: list[int]) -> None:
    """Content before the calls, both names, and arguments to the letter."""
    tool_format, content, text = TWO_CALLS[family]
    news, num_calls = read(tool_format, cut(text, places))
    assert joined(news) == (content, [("id-0", "get_weather", ARGUMENTS[0]), ("id-1", "add", ARGUMENTS[1])])
    assert num_calls == 2


@pytest.mark.parametrize("family", TWO_CALLS)
def test_letter_by_letter_nothing_is_held_longer_than_needed(family: str) -> None:
    """A name is told with the letter that completes it, arguments letter by letter."""
    tool_format, _, text = TWO_CALLS[family]
    news, _ = read(tool_format, list(text))
    named = text.index("get_weather") + len("get_weather")
    begins = next(i for i, parsed in enumerate(news) if parsed.calls)
    assert begins <= named + len('", "arguments') if tool_format is MISTRAL_NAMES else begins == named
    first = text.index(ARGUMENTS[0])
    pieces = [parsed.calls[-1].arguments for parsed in news[first + 1 : first + len(ARGUMENTS[0])]]
    assert "".join(pieces) == ARGUMENTS[0][1:]
    assert all(len(piece) == 1 for piece in pieces)


@pytest.mark.parametrize("tool_format", [HERMES, LLAMA_3, MISTRAL, GENERIC])
@given(
    words=st.lists(st.sampled_from([*'ab <{["}]:, \n', "tool", "<tool", '{"name"', '"x"']), max_size=30),
    places=st.lists(st.integers(0, 10_000), max_size=6),
)
def test_what_calls_nothing_is_content_to_the_letter(
    tool_format: ToolFormat, words: list[str], places: list[int]
) -> None:
    """A text without a mark, or JSON that names no tool, comes out as it went in."""
    text = "".join(words)
    news, num_calls = read(tool_format, cut(text, places))
    assert joined(news) == (text, [])
    assert num_calls == 0


def test_only_the_first_call_counts_without_parallel() -> None:
    """Further calls are left out."""
    for tool_format, content, text in TWO_CALLS.values():
        news, _ = read(tool_format, [text], parallel=False)
        assert joined(news) == (content, [("id-0", "get_weather", ARGUMENTS[0])])


@pytest.mark.parametrize(
    ("tool_format", "text", "content"),
    [
        (HERMES, "a <tool_call>nonsense</tool_call> b", "anonsense b"),
        (HERMES, '<tool_call>{"nam</tool_call>', ""),
        (HERMES, '<tool_call>\n{"arguments": {}}\n</tool_call>', '{"arguments": {}}'),
        (LLAMA_3, "<|python_tag|>print(1)", "print(1)"),
        (LLAMA_3, '<|python_tag|>{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}'),
        (MISTRAL, "[TOOL_CALLS]", ""),
    ],
)
def test_broken_calls_leak_no_markup(tool_format: ToolFormat, text: str, content: str) -> None:
    """What stands where a call should, and is none, is at most content; marks never are."""
    for pieces in ([text], list(text)):
        news, num_calls = read(tool_format, pieces)
        assert joined(news) == (content, [])
        assert num_calls == 0


MARKUP = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "{",
    "}",
    "[",
    "]",
    '"',
)
SCRAPS = (
    *MARKUP,
    call("add", "{}"),
    call("add", "{}", "parameters"),
    call("sub", "[]"),
    "add",
    " ",
    "\n",
    ";",
    "<",
    "x",
)


@given(
    st.sampled_from([HERMES, LLAMA_3, MISTRAL, MISTRAL_SPACED, MISTRAL_NAMES, GENERIC]),
    st.lists(st.sampled_from(SCRAPS), max_size=9).map("".join),
    st.lists(st.integers(0, 200), max_size=12),
    st.booleans(),
)
@example(LLAMA_3, "x <|python_tag|> y", [4, 9], True)
def test_however_a_text_is_cut_it_is_read_alike(
    tool_format: ToolFormat, text: str, places: list[int], parallel: bool
) -> None:
    """Nonsense, too: a stream and a whole answer never differ."""
    whole, _ = read(tool_format, [text], parallel=parallel)
    pieces, _ = read(tool_format, cut(text, places), parallel=parallel)
    assert joined(pieces) == joined(whole)


def test_a_call_that_is_cut_short_is_told_as_far_as_it_came() -> None:
    """At max_tokens the name and the beginning of the arguments are there."""
    news, num_calls = read(HERMES, ['<tool_call>\n{"name": "add", "arguments": {"x": 1'])
    assert joined(news) == ("", [("id-0", "add", '{"x": 1')])
    assert num_calls == 1


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"arguments": {"x": 1}, "name": "add"}', '{"x": 1}'),
        ('{"name": "add"}', "{}"),
        ('{"type": "function", "name": "add", "parameters": {}}', "{}"),
        ('{"name": "add", "arguments": "{\\"x\\": 1}"}', '{"x": 1}'),
        ('{"name": "add", "arguments": null, "id": 3.5}', "{}"),
    ],
)
def test_keys_come_in_any_order_and_form(text: str, arguments: str) -> None:
    """Arguments before the name, none at all, inside a string once more, other keys beside them."""
    for pieces in ([text], list(text)):
        news, _ = read(HERMES, ["<tool_call>", *pieces, "</tool_call>"])
        assert joined(news) == ("", [("id-0", "add", arguments)])


def test_news_of_one_piece_are_one_delta() -> None:
    """A call that comes whole in one piece is told once, name and arguments together."""
    news, _ = read(HERMES, [TWO_CALLS["hermes"][2]])
    assert news[0].calls == (
        CallDelta(0, "id-0", "get_weather", ARGUMENTS[0]),
        CallDelta(1, "id-1", "add", ARGUMENTS[1]),
    )
