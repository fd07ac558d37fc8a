"""When a request ends, judged token by token. Stop strings are text and are matched by whoever detokenises."""

from smartspec.scheduling.request import FinishReason, Request


def finish_reason_at(request: Request, token_id: int, max_model_len: int) -> FinishReason | None:
    """Why *request* ends at *token_id*, which was just appended to it; None when it goes on."""
    sampling, num_tokens = request.sampling, len(request.token_ids)
    num_output_tokens = num_tokens - len(request.prompt_token_ids)
    # The sampler masks these tokens while `min_tokens` is not reached, unless what else is ruled out leaves nothing but
    # them; where nothing is, the bound is kept here as well, whatever the sampler.
    may_be_forced = request.rule is not None or sampling.bans_tokens
    is_due = num_output_tokens > sampling.min_tokens or may_be_forced
    if is_due and (
        token_id in sampling.stop_token_ids or (token_id in request.eos_token_ids and not sampling.ignore_eos)
    ):
        return "stop"
    if num_output_tokens >= sampling.max_tokens or num_tokens >= max_model_len:
        return "length"
    return None
