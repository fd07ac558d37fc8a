"""Errors as OpenAI's clients expect them: one JSON object, a status that means something, never a traceback."""

import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from smartspec.scheduling.client import InvalidRequestError, NotAcceptingError, QueueFullError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A request that gets an error answer: *status*, a message for people, and the field at fault if one is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """OpenAI's error object as JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> web.Response:
        """The whole answer."""
        return web.Response(status=self.status, body=self.body(), content_type="application/json", headers=self.headers)


def as_api_error(error: Exception) -> ApiError | None:
    """The answer to an error that has one, or None for a defect of ours."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            # Whole seconds, at least one: HTTP's Retry-After knows no fractions, and 0 would invite a busy loop.
            retry_after = str(max(1, math.ceil(error.retry_after_seconds)))
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": retry_after})
        case NotAcceptingError():
            return ApiError(503, str(error), code="not_accepting")
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param)
        case web.RequestPayloadError():
            return ApiError(400, "the body is not encoded as its headers say", code="invalid_body")
        case web.HTTPNotFound():
            return ApiError(404, "no such route", code="not_found")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{error.method} is not allowed here, only {allowed}"
            return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return ApiError(413, "the body is larger than this server accepts", code="body_too_large")
        case web.HTTPException() if error.status >= 400:
            return ApiError(error.status, error.reason)
    return None


def validation_error(error: Exception) -> ApiError:
    """400 for a body that msgspec refused (or that is not UTF-8), naming the field when one is at fault."""
    message = str(error)
    path = re.search(r" - at `\$?\.?(.*)`$", message)
    param = path.group(1) if path else None
    text = message[: path.start()] if path else message
    if missing := re.search(r"(?:required|unknown) field `(.+?)`", text):
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
    return ApiError(400, f"{param}: {text}" if param else f"the body is not valid: {text}", param=param or None)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what handlers raise into error answers; log what is a defect of ours and say no more than that."""
    try:
        return await handler(request)
    except Exception as error:
        answer = as_api_error(error)
        if answer is None:
            log.exception("event=internal_error route=%s", route_of(request))
            answer = ApiError(500, "internal error")
        elif answer.status >= 500:
            log.warning("event=refused status=%d route=%s reason=%s", answer.status, route_of(request), answer.message)
        return answer.response()


def route_of(request: web.Request) -> str:
    """The pattern of the route, never the path itself: a path is client data and would end up in the log."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
