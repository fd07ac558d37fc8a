"""When a request ends, judged token by token. Stop strings are text and are matched by whoever detokenises."""

from smartspec.scheduling.request import FinishReason, Request


def finish_reason_at(request: Request, token_id: int, max_model_len: int) -> FinishReason | None:
    """Why *request* ends at *token_id*, which was just appended to it; None when it goes on."""
    sampling = request.sampling
    # The sampler masks these tokens while `min_tokens` is not reached; here the rule holds for any sampler.
    if request.num_output_tokens > sampling.min_tokens and (
        token_id in sampling.stop_token_ids or (token_id in request.eos_token_ids and not sampling.ignore_eos)
    ):
        return "stop"
    if request.num_output_tokens >= sampling.max_tokens or request.num_tokens >= max_model_len:
        return "length"
    return None
