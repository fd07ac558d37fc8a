"""How long a model's requests may be, where its position embeddings have a say.

Some rope scalings choose their frequencies by the longest position of the whole batch ("longrope", "dynamic"): rows of
different requests would change one another, and keys already stored would be wrong. Below the length that the model was
first trained for, these scalings do nothing that depends on the batch, so there they are served.
"""

import logging
from typing import Any

from smartspec.config import ConfigError

log = logging.getLogger(__name__)

_BATCH_DEPENDENT = ("longrope", "dynamic")
_DEFAULT_LIMIT = 4096
"""For models without a limit of their own, such as those with relative biases."""


def length_limit(config: Any, requested: int | None) -> int:
    """The longest request, in tokens, that the model of *config* can serve; ConfigError if *requested* is longer."""
    text = config.get_text_config(decoder=True)
    limit, reason = _limit(text)
    if requested is not None:
        if requested < 2:
            raise ConfigError(f"max_model_len must be at least 2, got {requested}")
        if limit is not None and requested > limit:
            raise ConfigError(f"max_model_len must be at most {limit} ({reason}), got {requested}")
        return requested
    return _DEFAULT_LIMIT if limit is None else limit


def _limit(text: Any) -> tuple[int | None, str]:
    trained = _trained_length(text)
    scaled = [p for p in rope_parameters(text) if p.get("rope_type") in _BATCH_DEPENDENT]
    if not scaled:
        return trained, "the model's max_position_embeddings"
    originals = [p.get("original_max_position_embeddings") for p in scaled]
    originals.append(getattr(text, "original_max_position_embeddings", None))
    limit = min((int(n) for n in originals if n), default=trained)
    kind = scaled[0]["rope_type"]
    return limit, f"{kind} rope scaling beyond the original length depends on the whole batch and is not served"


def _trained_length(text: Any) -> int | None:
    for name in ("max_position_embeddings", "max_seq_len"):
        try:
            length = getattr(text, name, None)
        except NotImplementedError:  # how a few configs say that there is none
            continue
        if isinstance(length, int) and length > 0:
            return length
    return None


def rope_parameters(text: Any) -> list[dict[str, Any]]:
    """Every set of rope parameters in a config: one, or one per kind of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(found, dict):
        return []
    if "rope_type" in found or "type" in found or not any(isinstance(v, dict) for v in found.values()):
        return [{"rope_type": found.get("type"), **found}]
    return [value for value in found.values() if isinstance(value, dict)]
