"""How long requests may be where rope scaling looks at the whole batch."""

from typing import Any

import pytest
from transformers import BloomConfig, LlamaConfig, MptConfig, Phi3Config

from smartspec.config import ConfigError
from smartspec.execution.rope import length_limit

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}


def llama(rope: dict[str, Any]) -> LlamaConfig:
    """A config of 2048 positions."""
    return LlamaConfig(max_position_embeddings=2048, rope_parameters=rope)


def longrope() -> Phi3Config:
    """A config of 2048 positions, first trained on 512."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    return Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=2048,
        original_max_position_embeddings=512,
        pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )


@pytest.mark.parametrize(
    ("config", "limit"),
    [(llama(PLAIN), 2048), (llama(YARN), 2048), (llama(DYNAMIC), 2048), (longrope(), 512), (BloomConfig(), 4096)],
    ids=["plain", "yarn", "dynamic", "longrope", "no positions"],
)
def test_the_limit_is_where_rows_would_change_one_another(config: Any, limit: int) -> None:
    """The model's own length, or the original one below a scaling that depends on the batch."""
    assert length_limit(config, None) == limit


def test_a_shorter_wish_is_granted_and_a_longer_one_refused() -> None:
    """With the reason."""
    assert length_limit(longrope(), 300) == 300
    with pytest.raises(ConfigError, match=r"max_model_len must be at most 512 \(longrope rope scaling"):
        length_limit(longrope(), 513)
    assert length_limit(BloomConfig(), 100_000) == 100_000


class Unlimited(LlamaConfig):
    """How XLNet's config says that it knows no limit."""

    @property
    def max_position_embeddings(self) -> int:
        """Raises NotImplementedError."""
        raise NotImplementedError("no sequence length limit")

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        """Takes nothing."""


@pytest.mark.parametrize(("config", "limit"), [(MptConfig(max_seq_len=512), 512), (Unlimited(), 4096)])
def test_a_limit_has_several_names_or_none(config: Any, limit: int) -> None:
    """MPT builds its biases for `max_seq_len` positions and fails beyond."""
    assert length_limit(config, None) == limit
