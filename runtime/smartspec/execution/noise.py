"""All randomness of sampling: one counter-based function of (seed, absolute position, purpose, token).

Nothing is drawn from a generator with a state, so neither batch composition, nor load, nor the number of speculative
tokens, nor a preemption can change which noise meets which token. Draft and target see the same noise where they ask
for the same purpose: that is what couples them.

The noise of a token is a standard exponential e; `argmax(log p - log e)` draws from p, -log e being a Gumbel (the
exponential race). Hashing a whole vocabulary for each row is the costly part, so exponentials are made top down, in
groups of 32 tokens: the least of n exponentials is an exponential over n, any member is the least with equal
probability, and the others exceed it by fresh exponentials (they are memoryless). One hash per group then bounds what
any of its tokens can reach, and only groups that can still win are looked into. This changes no result (A* sampling,
arXiv 1411.0030, over a tree of depth two).
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

GROUP_TOKENS = 32
"""Tokens under one group hash; part of the noise's definition."""

_GROUP_BITS = 5
_FIRST_LOOKS = 4
"""Groups looked into first: a good bound to begin with spares most of the others."""

_SMALL = 4096
"""Log probabilities, over all rows, for which hashing every token is quicker than finding out which to spare."""

_MASK64 = (1 << 64) - 1


class Purpose(IntEnum):
    """What noise is drawn for. Under one seed and position, noises of different purposes are independent.

    `TOKEN` chooses a token from the target's distribution; a coupled draft uses it as well. The others belong to
    rejection sampling, where draft, acceptance and recovery must be independent of each other.
    """

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RECOVER = 3


def wrap_int64(value: int) -> int:
    """*value* modulo 2^64 as a signed 64-bit number, as torch holds it."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


# SplitMix64 (Steele, Lea, Flood 2014): the Weyl increment and the two multipliers of its finaliser.
_INCREMENT = wrap_int64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = wrap_int64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = wrap_int64(0x94D049BB133111EB)


def stream_keys(seeds: Tensor, positions: Tensor, purposes: Tensor | int) -> Tensor:
    """The int64 key of each (seed, absolute position, purpose); arguments are int64 and broadcast.

    Under one seed, different positions or purposes always get different keys: the hash is a bijection.
    """
    return _mix(_mix(seeds + _INCREMENT) + (positions * len(Purpose) + purposes) * _INCREMENT)


def seed_tensor(seeds: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Seeds of any size as int64, taken modulo 2^64."""
    return torch.tensor([wrap_int64(seed) for seed in seeds], dtype=torch.int64, device=device)


def uniform(keys: Tensor) -> Tensor:
    """One float64 in the open interval (0, 1) per key."""
    return _open_unit(_mix(keys + _INCREMENT))


def exponential(keys: Tensor, tokens: Tensor) -> Tensor:
    """The float64 exponential noise of each (key, token); never 0 nor infinite. Arguments broadcast."""
    heads = _group_heads(keys, tokens >> _GROUP_BITS)
    return _group_members(keys, tokens, heads, _group_least(heads))


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """The float64 Gumbel noise of each (key, token): minus the logarithm of `exponential`."""
    return -exponential(keys, tokens).log()


def sample(log_probs: Tensor, keys: Tensor) -> Tensor:
    """Draw one token per row: `argmax(log_probs + gumbel)`, hashing only groups of tokens that can still win.

    *log_probs* is floating [rows, vocab], normalised or not, with -inf where a token is ruled out; *keys* is [rows].
    Returns int64 [rows]. A row's token depends on that row and its key alone.
    """
    if log_probs.numel() <= _SMALL:
        tokens = torch.arange(log_probs.shape[1], device=keys.device)
        return (log_probs.double() - exponential(keys[:, None], tokens).log_()).argmax(dim=1)
    peaks = _group_peaks(log_probs)
    rows, groups = peaks.shape
    heads = _group_heads(keys[:, None], torch.arange(groups, device=keys.device))
    least = _group_least(heads)
    bounds = peaks - least.log()

    looks = min(_FIRST_LOOKS, groups)
    first = bounds.topk(looks, dim=1, sorted=False).indices
    at = torch.arange(rows, device=keys.device).repeat_interleave(looks)
    scores, found = _best_in_groups(log_probs, keys, heads, least, at, first.flatten())
    best, index = scores.view(rows, looks).max(dim=1)
    tokens = found.view(rows, looks).gather(1, index[:, None])[:, 0]

    # The slack covers a logarithm that is not monotone in its last bit. A group without any candidate never contends.
    contends = (bounds >= best[:, None] - 1e-9) & (peaks > -torch.inf)
    at, group = contends.scatter_(1, first, False).nonzero(as_tuple=True)
    if len(at):
        scores, found = _best_in_groups(log_probs, keys, heads, least, at, group)
        best = best.scatter_reduce(0, at, scores, "amax")
        won = scores == best[at]
        tokens[at[won]] = found[won]
    return tokens


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection on 64 bits. Works in place: *z* must be the caller's own temporary.

    `>>` on int64 copies the sign, so each shift is masked to be logical; products wrap around.
    """
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _MULTIPLIER_1
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _MULTIPLIER_2
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def _open_unit(bits: Tensor) -> Tensor:
    """The top 52 bits of each int64 as a float64 in (0, 1), ends excluded.

    52 and not 53: x + 1/2 must be exact, or the largest x would round up to exactly 1.
    """
    return ((bits >> 12) & ((1 << 52) - 1)).double().add_(0.5).mul_(2.0**-52)


def _group_heads(keys: Tensor, groups: Tensor) -> Tensor:
    """The hash of each group: counters below zero, tokens' own are above."""
    return _mix(keys - (groups + 1) * _INCREMENT)


def _group_least(heads: Tensor) -> Tensor:
    """The least exponential of each group, from the high bits of its hash (the low ones say whose it is)."""
    return _open_unit(heads).log_().div_(-GROUP_TOKENS)


def _group_members(keys: Tensor, tokens: Tensor, heads: Tensor, least: Tensor) -> Tensor:
    """The exponential of each token, given its group's hash and least exponential."""
    excess = _open_unit(_mix(keys + (tokens + 1) * _INCREMENT)).log_().neg_()
    is_least = (heads ^ tokens) & (GROUP_TOKENS - 1) == 0
    return least + excess.masked_fill_(is_least, 0.0)


def _group_peaks(log_probs: Tensor) -> Tensor:
    """The largest log probability of each group, [rows, groups]; the last group may be short."""
    rows, vocab = log_probs.shape
    whole = vocab - vocab % GROUP_TOKENS
    peaks = log_probs[:, :whole].reshape(rows, -1, GROUP_TOKENS).amax(dim=2)
    if whole < vocab:
        peaks = torch.cat([peaks, log_probs[:, whole:].amax(dim=1, keepdim=True)], dim=1)
    return peaks.double()


def _best_in_groups(
    log_probs: Tensor, keys: Tensor, heads: Tensor, least: Tensor, rows: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """The best score and its token in each of *groups* of *rows*, both [n]; *heads* and *least* are [rows, groups]."""
    vocab = log_probs.shape[1]
    tokens = (groups[:, None] << _GROUP_BITS) + torch.arange(GROUP_TOKENS, device=groups.device)
    noise = _group_members(keys[rows, None], tokens, heads[rows, groups, None], least[rows, groups, None])
    scores = log_probs[rows[:, None], tokens.clamp_max(vocab - 1)].double().sub_(noise.log_())
    score, index = scores.masked_fill_(tokens >= vocab, -torch.inf).max(dim=1)
    return score, (groups << _GROUP_BITS) + index
