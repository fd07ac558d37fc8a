"""The sampling surface as OpenAI's own client meets it: the same with and without speculation, field by field."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletionMessageParam
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from serve_process import serve_process
from tiny import TinyPair, write_pair

MODEL = "tiny-target"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
PROMPT = "once upon a time there was"
OFF, FIXED = {"mode": "off"}, {"mode": "fixed", "max_tokens": 5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny random pair."""
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(pair: TinyPair) -> Iterator[openai.OpenAI]:
    """A client of `smartspec serve` with a draft, shared by this module's tests."""
    arguments = ["--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    with serve_process(pair.target, *arguments, "--num-blocks", "256") as running:
        with openai.OpenAI(base_url=f"{running.wait_ready().url}/v1", api_key="none", max_retries=0) as client:
            yield client


@pytest.fixture(scope="module")
def reference(pair: TinyPair) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """The same weights in transformers' own hands."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(pair.target, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(pair.target), model.eval()


def complete(client: openai.OpenAI, speculation: dict[str, Any], **fields: Any) -> Completion:
    """A completion of `PROMPT`, 32 tokens long unless told otherwise; *extra* fields are those OpenAI does not have."""
    extra = {"ignore_eos": True, "return_token_ids": True} | fields.pop("extra", {}) | {"speculation": speculation}
    answer = client.completions.create(
        **({"model": MODEL, "prompt": PROMPT, "max_tokens": 32, "extra_body": extra} | fields)
    )
    assert isinstance(answer, Completion)
    return answer


def said(answer: Completion) -> list[tuple[str, list[int], tuple[str, int | str | None]]]:
    """What was delivered, choice by choice, and at what it ended."""
    extras = [choice.model_extra or {} for choice in answer.choices]
    return [
        (choice.text, extra["token_ids"], (str(choice.finish_reason), extra["stop_reason"]))
        for choice, extra in zip(answer.choices, extras, strict=True)
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"97": 5, "98": 4.5, "32": -100}},
        {"n": 3},
        {"stop": ["e", "q", "zz"]},
        {"extra": {"repetition_penalty": 1.3}},
        {"extra": {"min_p": 0.1, "top_k": 12}, "top_p": 0.9},
        {"extra": {"stop_token_ids": list(range(60, 120)), "min_tokens": 7}},
        {"extra": {"ignore_eos": False, "min_tokens": 3}, "logit_bias": {"257": 6}},
        {"extra": {"bad_words": ["a", "J", "ig", "VV"]}},
        {"extra": {"allowed_token_ids": list(range(97, 110))}},
    ],
    ids=lambda fields: "+".join(key for key in (fields | fields.get("extra", {})) if key != "extra"),
)
def test_speculation_changes_nothing(client: openai.OpenAI, fields: dict[str, Any], temperature: float) -> None:
    """Text, token ids, reason and usage of each choice are those without speculation."""
    sampling = fields | {"temperature": temperature, "seed": 5}
    plain, speculated = complete(client, OFF, **sampling), complete(client, FIXED, **sampling)
    assert said(plain) == said(speculated)
    assert plain.usage is not None
    assert speculated.usage is not None
    assert plain.usage.completion_tokens == speculated.usage.completion_tokens
    assert plain.usage.completion_tokens == sum(len(token_ids) for _, token_ids, _ in said(plain))


def test_parameters_have_an_effect(client: openai.OpenAI) -> None:
    """What is compared above differs from the plain text: none of the fields is dropped on the way."""
    plain = said(complete(client, OFF, temperature=0.0))
    for fields in (
        {"presence_penalty": 1.0, "frequency_penalty": 0.5}, {"logit_bias": {"97": 5, "98": 4.5, "32": -100}},
        {"extra": {"repetition_penalty": 1.3}}, {"stop": ["e", "q", "zz"]},
        {"extra": {"bad_words": ["a", "J", "ig", "VV"]}}, {"extra": {"allowed_token_ids": list(range(97, 110))}},
        {"extra": {"stop_token_ids": list(range(60, 120)), "min_tokens": 7}},
    ):  # fmt: skip
        assert said(complete(client, OFF, temperature=0.0, **fields)) != plain, fields


def test_a_stop_in_a_speculated_run_cuts_there(client: openai.OpenAI) -> None:
    """Wherever it falls in a step: text before it, usage up to it, `stop`, in a stream as well."""
    plain = complete(client, OFF, temperature=0.0)
    text = plain.choices[0].text
    for begin in range(3, 12):
        stop = text[begin : begin + 2]
        answer = complete(client, FIXED, temperature=0.0, stop=stop)
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        (_, token_ids, ended), (_, all_ids, _) = said(answer)[0], said(plain)[0]
        assert ended == ("stop", stop)
        assert token_ids == all_ids[: len(token_ids)]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(token_ids) < 32
        chunks = list(
            client.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=32, temperature=0.0, stop=stop, stream=True,
                stream_options={"include_usage": True}, extra_body={"speculation": FIXED, "ignore_eos": True},
            )
        )  # fmt: skip
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer.choices[0].text
        assert (chunks[-2].choices[0].model_extra or {})["stop_reason"] == stop
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(token_ids)


def test_streamed_choices_are_those_of_the_whole(client: openai.OpenAI) -> None:
    """`n` in a stream: every index once, its own text, one reason each; usage so far in every chunk, never falling."""
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, n=3, seed=3, temperature=0.8, max_tokens=16)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, n=3, seed=3, temperature=0.8, max_tokens=16, stream=True,
            stream_options={"include_usage": True}, extra_body={"stream_options": {
                "include_usage": True, "continuous_usage_stats": True,
            }},
        )
    )  # fmt: skip
    texts, reasons = ["", "", ""], [[], [], []]  # type: list[str], list[list[str]]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    assert reasons == [[choice.finish_reason] for choice in whole.choices]
    usages = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(usages) == len(chunks)
    assert usages == sorted(usages)
    assert whole.usage is not None
    assert usages[-1] == whole.usage.completion_tokens
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@torch.inference_mode()
def test_logprobs_are_a_plain_forward_s(
    client: openai.OpenAI, reference: tuple[PreTrainedTokenizerBase, PreTrainedModel]
) -> None:
    """Both shapes, chosen and most probable tokens, prompt and answer, speculated upon and penalised."""
    tokenizer, model = reference
    answer = complete(
        client, FIXED, temperature=0.0, presence_penalty=1.0, logprobs=3, echo=True, extra={"prompt_logprobs": 2}
    )
    (choice,) = answer.choices
    extra, logprobs = choice.model_extra or {}, choice.logprobs
    assert logprobs is not None
    ids = [*extra["prompt_token_ids"], *extra["token_ids"]]
    rows = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    expected = [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]
    assert (logprobs.token_logprobs or [])[0] is None
    assert (logprobs.token_logprobs or [])[1:] == pytest.approx(expected, abs=1e-3)
    tops = (logprobs.top_logprobs or [])[1:]
    assert len(tops) == len(ids) - 1
    for top, row in zip(tops, rows, strict=False):
        assert sorted(top.values())[-3:] == pytest.approx(sorted(row.topk(3).values.tolist()), abs=1e-3)
    assert choice.text.startswith(PROMPT)
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    assert [
        name == text if "\N{REPLACEMENT CHARACTER}" not in text else name.startswith("bytes:\\x")
        for name, text in zip(logprobs.tokens or [], texts, strict=True)
    ] == [True] * len(ids)
    scored = extra["prompt_logprobs"]
    assert scored[0] is None
    for i, entry in enumerate(scored[1:]):
        assert entry[str(ids[i + 1])]["logprob"] == pytest.approx(expected[i], abs=1e-3)
        assert len(entry) in (2, 3)

    chat = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, temperature=0.0, logprobs=True, top_logprobs=2,
        extra_body={"return_token_ids": True, "ignore_eos": True, "speculation": FIXED},
    ).choices[0]  # fmt: skip
    chat_extra = chat.model_extra or {}
    prompt_ids, chat_ids = chat_extra["prompt_token_ids"], chat_extra["token_ids"]
    rows = model(torch.tensor([[*prompt_ids, *chat_ids]])).logits[0, len(prompt_ids) - 1 :].log_softmax(dim=-1)
    assert chat.logprobs is not None
    for entry, row, token in zip(chat.logprobs.content or [], rows, chat_ids, strict=False):
        assert entry.token == tokenizer.decode([token], skip_special_tokens=False)
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)
    assert len(chat.logprobs.content or []) == 8
    octets = b"".join(bytes(entry.bytes or ()) for entry in chat.logprobs.content or [])
    assert octets.decode(errors="replace") == tokenizer.decode(chat_ids, skip_special_tokens=False)


def test_best_of_and_prompts_of_every_form(client: openai.OpenAI) -> None:
    """The best of four seeds is one of the four; texts and token ids give the same choices, several in order."""
    every = complete(client, FIXED, n=4, seed=9, temperature=1.0, logprobs=0)
    means = {
        choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
        for choice in every.choices
        if choice.logprobs is not None and choice.logprobs.token_logprobs
    }
    best = complete(client, FIXED, n=1, best_of=4, seed=9, temperature=1.0)
    assert best.choices[0].text == max(means, key=lambda text: means[text])
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.completion_tokens == every.usage.completion_tokens

    other = "another text"
    answers = complete(client, FIXED, prompt=[PROMPT, other], temperature=0.0)
    ids = [(choice.model_extra or {})["prompt_token_ids"] for choice in answers.choices]
    alone = [complete(client, FIXED, prompt=prompt, temperature=0.0).choices[0].text for prompt in (PROMPT, other)]
    assert [choice.text for choice in answers.choices] == alone
    assert [c.text for c in complete(client, FIXED, prompt=ids, temperature=0.0).choices] == alone
    assert [c.text for c in complete(client, FIXED, prompt=ids[0], temperature=0.0).choices] == alone[:1]


def test_a_prompt_is_scored_without_an_answer(client: openai.OpenAI) -> None:
    """`max_tokens: 0` with `echo`, as evaluation harnesses ask."""
    answer = complete(client, FIXED, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == PROMPT
    assert choice.logprobs is not None
    assert answer.usage is not None
    assert len(choice.logprobs.token_logprobs or []) == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 0


def test_refusals_name_the_field(client: openai.OpenAI) -> None:
    """What OpenAI has and we do not, and what is out of bounds."""
    refused: list[tuple[str, dict[str, Any]]] = [
        ("suffix", {"suffix": "x"}), ("logit_bias", {"logit_bias": {"cat": 1}}),
        ("logit_bias", {"logit_bias": {"99999": 1}}), ("presence_penalty", {"presence_penalty": 3}),
        ("best_of", {"best_of": 2, "n": 3}), ("logprobs", {"logprobs": 50}),
    ]  # fmt: skip
    for param, fields in refused:
        with pytest.raises(openai.BadRequestError) as error:
            complete(client, FIXED, **fields)
        assert str(error.value.param).split("[")[0] == param
