"""OpenAI's own client against `smartspec serve`: what a user's program meets."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve_process import ServeProcess, serve_process
from tiny import TinyPair, write_pair

MODEL = "tiny-target"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A tiny random pair."""
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(pair: TinyPair) -> Iterator[ServeProcess]:
    """`smartspec serve` with a draft, shared by this module's tests."""
    arguments = ["--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    keys = {"SMARTSPEC_API_KEY": "sesame"}
    with serve_process(pair.target, *arguments, "--num-blocks", "256", environment=keys) as running:
        yield running.wait_ready()


@pytest.fixture
def client(server: ServeProcess) -> Iterator[openai.OpenAI]:
    """The synchronous client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as client:
        yield client


def load(server: ServeProcess) -> dict[str, Any]:
    """What the admin port says of the load."""
    with urllib.request.urlopen(f"{server.admin_url}/load", timeout=10) as response:
        report: dict[str, Any] = json.load(response)
        return report


def test_usage_tells_what_was_cached(client: openai.OpenAI, server: ServeProcess) -> None:
    """A prompt asked again is found up to its last block; under another salt it is not; metrics count both."""
    text, cached = "once upon a time, " * 4, []
    for salt in (None, None, "mine", "mine"):
        extra = {"ignore_eos": True} | ({"cache_salt": salt} if salt else {})
        answer = client.completions.create(model=MODEL, prompt=text, max_tokens=2, temperature=0.0, extra_body=extra)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    whole_blocks = (answer.usage.prompt_tokens - 1) // 16 * 16
    assert whole_blocks > 0
    assert cached == [0, whole_blocks, 0, whole_blocks]
    with urllib.request.urlopen(f"{server.admin_url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    values = {
        line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:prefix")
    }
    assert 2 * whole_blocks <= values["vllm:prefix_cache_hits_total"] < values["vllm:prefix_cache_queries_total"]


def test_chat_streams(client: openai.OpenAI) -> None:
    """Chunks join to the text of the whole answer; the last one says why it ended; usage comes when asked for."""
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=24, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_completion_tokens=24, stream=True,
            stream_options={"include_usage": True}, **GREEDY,
        )
    )  # fmt: skip
    *texts, last = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == whole.choices[0].message.content
    assert texts[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 24
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24


def test_completion_is_that_of_generate(client: openai.OpenAI, pair: TinyPair) -> None:
    """Over HTTP, from text to text, with speculation: what transformers says on the same weights."""
    tokenizer, model = AutoTokenizer.from_pretrained(pair.target), AutoModelForCausalLM.from_pretrained(pair.target)
    prompt = "def main(argv):"
    ids = torch.tensor([tokenizer.encode(prompt)])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), min_new_tokens=32, max_new_tokens=32, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :]
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=32, temperature=0.0, extra_body={"min_tokens": 32}
    )
    assert answer.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)
    by_ids = client.completions.create(
        model=MODEL, prompt=ids[0].tolist(), max_tokens=32, temperature=0.0, extra_body={"min_tokens": 32}
    )
    assert by_ids.choices[0].text == answer.choices[0].text


async def test_async_client_streams_many_at_once(server: ServeProcess) -> None:
    """Twelve streams at once, each with its own text, the same as alone."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as client:

        async def stream(prompt: str) -> str:
            chunks = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=20, stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in chunks])

        prompts = [f"{'ab' * i} number {i}" for i in range(12)]
        together = await asyncio.gather(*map(stream, prompts))
        alone = [await stream(prompt) for prompt in prompts]
    assert together == alone
    assert len(set(together)) == 12


def test_seed_decides_the_text(client: openai.OpenAI) -> None:
    """At temperature 0.9, whatever the speculation: the same seed the same text, another seed another."""

    def text(seed: int, speculation: dict[str, Any]) -> str:
        body = {"speculation": speculation, "ignore_eos": True}
        answer = client.completions.create(
            model=MODEL, prompt="once upon", max_tokens=24, temperature=0.9, seed=seed, extra_body=body
        )
        return answer.choices[0].text

    texts = [text(1, wish) for wish in ({"mode": "off"}, {"mode": "fixed", "max_tokens": 4}, {"mode": "auto"})]
    assert len(set(texts)) == 1
    assert text(2, {"mode": "auto"}) != texts[0]


def test_logprobs_are_the_model_s(client: openai.OpenAI, pair: TinyPair) -> None:
    """The chosen token's log probability, in both shapes, as transformers computes it."""
    answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=6, logprobs=1, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == len(logprobs.tokens or []) == len(logprobs.text_offset or []) == 6
    tokenizer, model = AutoTokenizer.from_pretrained(pair.target), AutoModelForCausalLM.from_pretrained(pair.target)
    with torch.inference_mode():
        first = model(torch.tensor([tokenizer.encode("hello")])).logits[0, -1].log_softmax(-1).max()
    assert logprobs.token_logprobs[0] == pytest.approx(float(first), abs=1e-3)
    chat = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, logprobs=True, **GREEDY)
    assert chat.choices[0].logprobs is not None
    assert len(chat.choices[0].logprobs.content or []) == 5


def test_stop_string_is_not_sent(client: openai.OpenAI) -> None:
    """The text ends before the stop string, streamed or not, and says `stop`."""
    plain = client.completions.create(model=MODEL, prompt="hello", max_tokens=40, **GREEDY).choices[0].text
    stop = plain[12:15]
    expected = plain[: plain.index(stop)]
    whole = client.completions.create(model=MODEL, prompt="hello", max_tokens=40, stop=stop, **GREEDY)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "stop")
    chunks = client.completions.create(model=MODEL, prompt="hello", max_tokens=40, stop=[stop], stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_leaving_frees_the_cache(client: openai.OpenAI, server: ServeProcess) -> None:
    """A stream that is closed early is soon gone from the engine, blocks and all."""
    stream = client.completions.create(model=MODEL, prompt="hello", max_tokens=400, stream=True, **GREEDY)
    next(iter(stream))
    assert load(server)["num_requests_running"] == 1
    stream.close()
    deadline = time.monotonic() + 5
    while (report := load(server))["num_requests_running"] or report["kv_cache_usage"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_errors_are_the_client_s_own(client: openai.OpenAI, server: ServeProcess) -> None:
    """Wrong model, bad field, unknown token, wrong key: the exceptions that programs catch."""
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=[5, 10**6])
    assert refused.value.param == "prompt"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices  # it is still well


def test_models_tell_what_is_served(client: openai.OpenAI) -> None:
    """The model's id, and our promises beside it."""
    (model,) = client.models.list().data
    assert model.id == MODEL
    told = model.model_dump()
    assert (told["attention"], told["invariant"], told["proposers"]) == ("paged", True, ["draft", "lookup"])


def test_metrics_follow_real_steps(client: openai.OpenAI, server: ServeProcess) -> None:
    """After a speculated answer the exposition has drafts, queue times and seconds by part."""
    body = {"speculation": {"mode": "fixed", "max_tokens": 3}, "ignore_eos": True}
    client.completions.create(model=MODEL, prompt="hello", max_tokens=20, temperature=0.0, extra_body=body)
    text = server.get("/metrics")[1]
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = f'{{model_name="{MODEL}"}}'
    for name in (
        "vllm:spec_decode_num_draft_tokens_total", "vllm:generation_tokens_total", "smartspec_steps_total",
        "vllm:request_queue_time_seconds_count", "smartspec_tokens_kept_total", "vllm:prompt_tokens_total",
    ):  # fmt: skip
        assert float(values[name + label]) > 0, name


def test_warnings_do_not_spill(server: ServeProcess) -> None:
    """Serving all that wrote no traceback, and no prompt, into the log."""
    log = "".join(server.log)
    assert "Traceback" not in log
    assert "hello there" not in log


def test_policy_is_hot(server: ServeProcess, client: openai.OpenAI) -> None:
    """A pushed policy is in force for the next request and echoed in the load."""
    data = json.dumps({"generation": 7, "policy": "off"}).encode()
    request = urllib.request.Request(f"{server.admin_url}/policy", data, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["policy"] == "off"
    client.completions.create(model=MODEL, prompt="hello", max_tokens=8, **GREEDY)
    assert load(server)["generation"] == 7
