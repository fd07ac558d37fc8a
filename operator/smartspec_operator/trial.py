"""`try`: serve the model pair that is part of the runtime image, prompt it through its Service, and remove it.

What `helm test` runs. It plays a user: all it does is create, read and delete one SmartSpec, and speak HTTP.
"""

import asyncio
import functools
import json
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from smartspec_operator.connection import connect
from smartspec_operator.kube import Api
from smartspec_operator.resource import GROUP, KIND, VERSION, Manifest, parse

MODEL, DRAFT = "/models/stdlib-target", "/models/stdlib-draft"
PROMPT = "def parse(self, text):"
MAX_TOKENS = 32
ANNOTATION = f"{GROUP}/trial"
POLL_SECONDS = 1.0
REQUEST_SECONDS = 60.0


class TrialError(Exception):
    """The cluster does not serve; the message says how far it came and what was last reported."""


def wish(namespace: str, name: str, resources: Mapping[str, Any], pull_secrets: Sequence[str]) -> Manifest:
    """The SmartSpec of the bundled pair; raises `InvalidSpecError` where *resources* cannot be a container's."""
    body: Manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": MODEL, "compile": "Off"},
            "speculation": {"draft": {"source": DRAFT}},
            "template": {
                "resources": resources,
                "imagePullSecrets": [{"name": name} for name in pull_secrets],
                # Nobody waits for its last requests: it need not linger for the minutes that others are given.
                "terminationGracePeriodSeconds": 35,
            },
        },
    }
    parse(body)
    return body


async def attempt(
    api: Api, session: ClientSession, body: Manifest, *, timeout_seconds: float, say: Callable[[str], None]
) -> None:
    """Create *body*, wait until it is ready, prompt it, and remove it whatever came of it: also where the answer to its
    creation was lost. A SmartSpec of the same name that is another's stays.

    Raises `TrialError` when the prompt was not answered within *timeout_seconds*, and `ApiError` when the API server
    refuses.
    """
    place, mark = (body["metadata"]["namespace"], body["metadata"]["name"]), secrets.token_hex(16)
    say(f"creating SmartSpec {'/'.join(place)} of {body['spec']['model']['source']}")
    # The mark tells ours from another's of this name, where it is not known whether ours was made.
    marked = {**body, "metadata": {**body["metadata"], "annotations": {ANNOTATION: mark}}}
    creation = asyncio.ensure_future(api.create(marked))
    try:
        await asyncio.shield(creation)
        progress = Progress(say)
        try:
            async with asyncio.timeout(timeout_seconds):
                url = await _ready(api, place, progress)
                say(f"prompting {url}: {PROMPT!r}")
                say(f"answered: {await _answer(session, url, parse(body).served_name, progress)!r}")
        except TimeoutError:
            raise TrialError(f"no answer within {timeout_seconds:g} s; at last: {progress.last}") from None
    finally:
        await asyncio.shield(_remove(api, place, mark, creation, say))


class Progress:
    """Says what is new, once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.last = "no status: is an operator running, and does it serve this namespace?"

    def note(self, text: str) -> None:
        """Say *text*, unless it was said last."""
        if text != self.last:
            self._say(text)
        self.last = text


async def _ready(api: Api, place: tuple[str, str], progress: Progress) -> str:
    """The URL of the resource, once it is ready."""
    while True:
        live = await api.get(KIND, *place)
        if live is None:
            raise TrialError(f"SmartSpec {'/'.join(place)} is not there: is the CRD? Or was it deleted?")
        status = live.get("status", {})
        conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
        ready, degraded = conditions.get("Ready", {}), conditions.get("Degraded", {})
        if ready:
            progress.note(_told(degraded if degraded.get("status") == "True" else ready))
        if ready.get("status") == "True" and "url" in status:
            return str(status["url"])
        await asyncio.sleep(POLL_SECONDS)


def _told(condition: Manifest) -> str:
    message = condition.get("message", "")
    return f"{condition['type']}={condition['status']}, {condition['reason']}" + (f": {message}" if message else "")


async def _answer(session: ClientSession, url: str, model: str, progress: Progress) -> str:
    """The text of a completion. A Service may take a moment to know its endpoints: what fails is tried again."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}
    while True:
        try:
            async with session.post(
                f"{url}/completions", json=body, timeout=ClientTimeout(total=REQUEST_SECONDS)
            ) as response:
                text = await response.text()
                if response.status == 200:
                    return _completion(text)
                progress.note(f"HTTP {response.status}: {text[:500]}")
        except (ClientError, TimeoutError, OSError) as error:
            progress.note(f"{url}: {type(error).__name__} {error}".rstrip())
        await asyncio.sleep(POLL_SECONDS)


def _completion(text: str) -> str:
    """The completion's text; raises `TrialError` where there is none."""
    try:
        answer = json.loads(text)
        completion, tokens = answer["choices"][0]["text"], answer["usage"]["completion_tokens"]
    except (ValueError, LookupError, TypeError):
        raise TrialError(f"not a completion: {text[:500]}") from None
    if not completion or not 0 < tokens <= MAX_TOKENS:
        raise TrialError(f"a completion of {tokens} tokens: {completion!r}")
    return str(completion)


async def _remove(
    api: Api, place: tuple[str, str], mark: str, creation: asyncio.Future[None], say: Callable[[str], None]
) -> None:
    """Remove what *creation* made, once that has ended: cut off half-way, it might make it after we looked."""
    await asyncio.gather(creation, return_exceptions=True)
    live = await api.get(KIND, *place)
    if live is not None and (live["metadata"].get("annotations") or {}).get(ANNOTATION) == mark:
        await api.delete(KIND, *place, live["metadata"]["uid"])
        say("removed; what it owned goes with it")


async def run(body: Manifest, *, timeout_seconds: float) -> None:
    """`attempt` against the cluster that this process is in, or its kubeconfig names; progress goes to stdout.

    Ends with `asyncio.CancelledError` on SIGINT and SIGTERM: a pod that is deleted half-way leaves no SmartSpec behind.
    """
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with await connect() as client, ClientSession() as session:
        say = functools.partial(print, flush=True)
        await attempt(Api(client), session, body, timeout_seconds=timeout_seconds, say=say)
