"""Whether a request can be served at all: asked at the door by the client side, and again by the scheduler."""

from smartspec.scheduling.client import InvalidRequestError


def check_fits(num_prompt_tokens: int, max_tokens: int, max_model_len: int, kv_cache_tokens: int) -> None:
    """Raise InvalidRequestError, naming the field at fault, for what could never run to its end.

    The newest token needs no slot in the KV cache: it is never attended to.
    """
    if num_prompt_tokens < 1:
        raise InvalidRequestError("prompt", "the prompt is empty: at least one token is needed")
    if max_tokens < 1:
        raise InvalidRequestError("max_tokens", f"max_tokens must be at least 1, got {max_tokens}")
    for limit, name in ((max_model_len, "the model's context length"), (kv_cache_tokens + 1, "the KV cache")):
        if num_prompt_tokens >= limit:
            raise InvalidRequestError(
                "prompt", f"the prompt has {num_prompt_tokens} tokens; {name} leaves room for at most {limit - 1}"
            )
        if num_prompt_tokens + max_tokens > limit:
            raise InvalidRequestError(
                "max_tokens",
                f"the prompt's {num_prompt_tokens} tokens and max_tokens ({max_tokens}) exceed {name} of {limit} "
                f"tokens: max_tokens can be at most {limit - num_prompt_tokens}",
            )
