"""`transformers`' assisted generation as a server: a queue before one `generate()` at a time.

python -m smartspec_bench.assisted TARGET DRAFT --port PORT
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer


class Assisted:
    """A target that generates with the help of a draft, for one request after the other."""

    def __init__(self, target: str, draft: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self.target = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
        self.draft = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.bfloat16).eval()
        # One thread: it is the queue, and torch keeps a pool of its own for every thread that calls it.
        self.thread = ThreadPoolExecutor(max_workers=1)

    def generate(self, prompt: str, tokens: int, temperature: float) -> tuple[str, int]:
        """The text of exactly *tokens* new tokens, and how many there were."""
        ids = self.tokenizer(prompt, return_tensors="pt")
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with torch.inference_mode():
            out = self.target.generate(
                **ids, assistant_model=self.draft, max_new_tokens=tokens, min_new_tokens=tokens, **sampling
            )
        new = out[0, ids["input_ids"].shape[1] :].tolist()
        return self.tokenizer.decode(new), len(new)

    async def complete(self, request: web.Request) -> web.Response:
        """`POST /v1/completions`, the fields that the load generator sends."""
        body = await request.json()
        arguments = body["prompt"], body["max_tokens"], body["temperature"]
        text, count = await asyncio.get_running_loop().run_in_executor(self.thread, self.generate, *arguments)
        return web.json_response({"choices": [{"text": text}], "usage": {"completion_tokens": count}})


async def ready(request: web.Request) -> web.Response:
    """It is, as soon as it listens."""
    return web.json_response({"ready": True})


def main() -> None:
    """Load, then listen on loopback."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    assisted = Assisted(options.target, options.draft)
    app = web.Application()
    app.router.add_post("/v1/completions", assisted.complete)
    app.router.add_get("/ready", ready)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
