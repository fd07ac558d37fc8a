"""Whether a model may be run over a paged cache, found by trying: never assumed from its name.

Models exist that run through another attention without an error and answer something else: they keep state elsewhere,
build masks of their own, or lose their window with the mask. So each model is compared with itself as transformers runs
it (eager attention, one request at a time), here with requests packed, cut and speculated on; and so is a small random
twin, in which windows are short.

All of that rests on the plain forward. Where that is not what `generate()` says either (masked language models, parts
of models for speech), no way of serving could be called right, and the model is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from smartspec.execution import rope, twin
from smartspec.execution.attention import LayerGeometry, UnsupportedModelError, survey, use_paged_attention
from smartspec.execution.batch import Segment
from smartspec.execution.paged_model import PagedModel
from smartspec.execution.recomputed_model import RecomputedModel

Attention = Literal["paged", "padded", "stateful"]

_BLOCK_SIZE = 16
_NUM_BLOCKS = 16
_LENGTHS = (45, 30)
_SHORT = 20
"""Tokens of the beginning that is tried alone: more than the twin's window."""
_LONG = 600
"""Tokens of a text that only the twin has to read."""
_TOLERANCE = {torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.15
"""Relative error allowed in 16-bit formats: rounding makes some hundredths, another mask makes tenths or more."""

_OTHER_TEXT = 0.15
"""Relative error above which `generate()` says something else than the plain forward. Recurrences that transformers
computes in one way over a cache and in another over a text differ by half a hundredth; other masks by tenths."""

_TRIAL_ERRORS = (UnsupportedModelError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError)
"""What models raise that cannot take packed rows: they were written for other callers."""


class _Model(Protocol):
    vocab_size: int

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Verdict:
    """How a model can be served, and why so.

    "paged"; "padded": recomputed in padded batches, since its attention is not ours to replace; "stateful": recomputed
    request by request and without speculation, since it keeps state outside attention. *layers* is empty unless paged.
    """

    attention: Attention
    reason: str
    layers: list[LayerGeometry] = field(default_factory=list)


def check(model: PreTrainedModel) -> Verdict:
    """Try *model*, which comes on eager attention, and is left on paged attention if it passes.

    Raises UnsupportedModelError when no way of running it gives the text that transformers would.
    """
    small = twin.build(model.config)
    try:
        expected = _logits(model, _texts(_vocab_size(model)))
        refusal = _refusal(model, small, expected)
    except _TRIAL_ERRORS as problem:
        raise UnsupportedModelError(f"{type(model).__name__} fails on plain text: {problem}") from problem
    if refusal is not None:
        raise UnsupportedModelError(refusal)
    verdict = _check(model, small, expected)
    if verdict.attention == "paged":
        return verdict
    model.set_attn_implementation("eager")
    if verdict.attention == "padded" and not _passes(_padded_error(model, expected), model.dtype):
        return Verdict("stateful", f"{verdict.reason}; and company shows in its rows")
    return verdict


def is_invariant(model: _Model) -> bool:
    """Whether rows come out of *model* the same bit for bit in one piece, in many, and beside other requests.

    Uses the blocks of its cache, before anyone else does.
    """
    if not isinstance(model, PagedModel) or not model.attention.invariant:
        return False
    size = model.block_size
    room = model.num_blocks * size
    length = min(100, room // 2)
    blocks, others = range(-(-length // size)), range(-(-length // size), model.num_blocks)
    ids, noise = _token_ids(model.vocab_size, length, seed=2), _token_ids(model.vocab_size, length, seed=3)
    whole = model.forward([Segment(ids, 0, blocks, length)])
    done, step = 0, 0
    while done < length:
        count = min((1, 2, 5, 1, 24, 3, 40, 7)[step % 8], length - done)
        company = min(len(others) * size, (0, 3, 1, 17, 6)[step % 5])
        segments = [Segment(noise[:company], 0, others, 0)] if company else []
        rows = model.forward([*segments, Segment(ids[done : done + count], done, blocks, count)])
        if not torch.equal(rows, whole[done : done + count]):
            return False
        done, step = done + count, step + 1
    return True


def _refusal(model: PreTrainedModel, small: PreTrainedModel | None, expected: list[torch.Tensor]) -> str | None:
    """Why no text of *model* could be called right, if so."""
    name = type(model).__name__
    hindsight = f"{name} is no causal language model as configured: later tokens change earlier rows by "
    if not _passes(error := _hindsight_error(model, expected[0]), model.dtype):
        return f"{hindsight}{error:.2g}"
    # The twin first: float32, narrow, and with windows that show.
    for tried in (model,) if small is None else (small, model):
        try:
            if tried is small:
                error = _hindsight_error(small, _logits(small, _texts(_vocab_size(small))[:1])[0])
                if not _passes(error, torch.float32):
                    return f"{hindsight}{error:.2g} in a small twin"
            error = _generation_error(tried)
        except _TRIAL_ERRORS:  # of code that serving does not use, or of a twin that its family does not allow
            continue
        if not error <= _OTHER_TEXT:  # true for NaN
            return f"transformers' generate() and its plain forward of {name} disagree by {error:.2g}"
        return None
    return None


@torch.inference_mode()
def _hindsight_error(model: PreTrainedModel, expected: torch.Tensor) -> float:
    """Relative error of the first rows when the rest of the text has not come yet."""
    text = torch.tensor([_texts(_vocab_size(model))[0][:_SHORT]], device=model.device)
    return _relative(model(input_ids=text, use_cache=False).logits[0].float(), expected[:_SHORT])


@torch.inference_mode()
def _generation_error(model: PreTrainedModel) -> float:
    """Relative error of the plain forward against `generate()`, with its cache and whatever it puts around a text."""
    text = torch.tensor([_texts(_vocab_size(model))[0][:_SHORT]], device=model.device)
    options = GenerationConfig(
        max_new_tokens=4, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    said: Any = model.generate(text, attention_mask=torch.ones_like(text), generation_config=options)
    plain = model(input_ids=said.sequences[:, :-1], use_cache=False).logits[0, _SHORT - 1 :]
    return _relative(torch.cat(said.logits).float(), plain.float())


def _check(model: PreTrainedModel, small: PreTrainedModel | None, expected: list[torch.Tensor]) -> Verdict:
    try:
        use_paged_attention(model)
        layers = survey(model)
    except UnsupportedModelError as problem:
        return Verdict("stateful" if problem.is_stateful else "padded", str(problem))
    except _TRIAL_ERRORS as problem:
        return Verdict("padded", f"it cannot take packed rows: {problem}")
    try:
        error = _paged_error(model, layers, expected, cut=True)
        if not _passes(error, model.dtype):
            whole = _paged_error(model, layers, expected, cut=False)
            if _passes(whole, model.dtype):
                return Verdict("stateful", f"state outside attention: cut requests differ by {error:.2g}")
            return Verdict("padded", f"its attention is more than its keywords say: rows differ by {whole:.2g}")
    except _TRIAL_ERRORS as problem:
        return Verdict("padded", f"it cannot take packed rows: {problem}")
    return _check_twin(model.config, small, layers, error)


def _check_twin(config: Any, small: PreTrainedModel | None, layers: list[LayerGeometry], error: float) -> Verdict:
    if small is None:
        if twin.has_window(config):
            return Verdict("padded", "it has a window, and no small twin to check it on could be built")
        return Verdict("paged", f"rows differ by {error:.2g}; no small twin could be built", layers)
    try:
        length = min(_LONG, rope.length_limit(small.config, None))
        texts = [*_texts(_vocab_size(small)), _token_ids(_vocab_size(small), length, seed=len(_LENGTHS))]
        *short, long = _logits(small, texts)
        use_paged_attention(small)
        kinds = survey(small)
        twin_error = max(_paged_error(small, kinds, short, cut=True), _long_error(small, kinds, texts[-1], long))
    except _TRIAL_ERRORS as problem:
        return Verdict("padded", f"a small twin fails: {problem}")
    if not _passes(twin_error, torch.float32):
        return Verdict("padded", f"a small twin with a window of {twin.WINDOW} differs by {twin_error:.2g}")
    return Verdict("paged", f"rows differ by {error:.2g}, a small twin's by {twin_error:.2g}", layers)


def _passes(error: float, dtype: torch.dtype) -> bool:
    return error <= _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)  # false for NaN


@torch.inference_mode()
def _logits(model: PreTrainedModel, texts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each text alone, as transformers computes them."""
    ids = [torch.tensor([text], device=model.device) for text in texts]
    return [model(input_ids=text, use_cache=False).logits[0].float() for text in ids]


def _paged_error(
    model: PreTrainedModel, layers: list[LayerGeometry], expected: list[torch.Tensor], *, cut: bool
) -> float:
    """Relative error of paged logits: of the first text in one piece, or of both texts cut and mixed."""
    paged = PagedModel(model, num_blocks=_NUM_BLOCKS, block_size=_BLOCK_SIZE, layers=layers)
    texts = _texts(paged.vocab_size)
    if not cut:
        rows = paged.forward([Segment(texts[0], 0, range(3), len(texts[0]))])
        return _relative(rows, expected[0])
    found, wanted = [], []
    for segments, kept in _steps(texts):
        rows = paged.forward(segments)
        begin = 0
        for segment, (text, count) in zip(segments, kept, strict=True):
            found.append(rows[begin : begin + count])
            wanted.append(expected[text][segment.start : segment.start + count])
            begin += segment.num_logits
    return _relative(torch.cat(found), torch.cat(wanted))


def _long_error(model: PreTrainedModel, layers: list[LayerGeometry], text: list[int], expected: torch.Tensor) -> float:
    """Relative error of a long text in one piece: for bounds of a view that `twin` does not know by name."""
    num_blocks = -(-len(text) // _BLOCK_SIZE)
    paged = PagedModel(model, num_blocks=num_blocks, block_size=_BLOCK_SIZE, layers=layers)
    return _relative(paged.forward([Segment(text, 0, range(num_blocks), len(text))]), expected)


def _padded_error(model: PreTrainedModel, expected: list[torch.Tensor]) -> float:
    """Relative error of both texts recomputed in one padded batch."""
    padded = RecomputedModel(model, num_blocks=_NUM_BLOCKS, block_size=_BLOCK_SIZE, batches=True)
    tables = (range(3), range(3, 5))
    segments = [Segment(ids, 0, t, len(ids)) for ids, t in zip(_texts(padded.vocab_size), tables, strict=True)]
    return _relative(padded.forward(segments), torch.cat(expected))


def _steps(texts: list[list[int]]) -> Iterator[tuple[list[Segment], list[tuple[int, int]]]]:
    """Steps over both texts with, per segment, which text it belongs to and how many of its rows are true: chunks,
    single rows, and proposals whose last tokens are wrong and are written over in the next step."""
    tables = ((9, 4, 7), (2, 11))
    first, second = texts
    wrong = [(token + 1) % max(first) if max(first) else token for token in first]
    for pieces in (
        [(0, 0, first[0:20], 20), (1, 0, second[0:7], 7)],
        [(1, 7, second[7:24], 17), (0, 20, first[20:21], 1)],
        [(0, 21, [*first[21:23], *wrong[23:26]], 2), (1, 24, second[24:25], 1)],
        [(0, 23, first[23:27], 4), (1, 25, second[25:30], 5)],
        [(0, 27, first[27:45], 18)],
    ):
        yield (
            [Segment(ids, start, tables[text], len(ids)) for text, start, ids, _ in pieces],
            [(text, count) for text, _, _, count in pieces],
        )


def _vocab_size(model: PreTrainedModel) -> int:
    size: int = model.config.get_text_config(decoder=True).vocab_size
    return size


def _texts(vocab: int) -> list[list[int]]:
    return [_token_ids(vocab, length, seed=i) for i, length in enumerate(_LENGTHS)]


def _token_ids(vocab: int, count: int, *, seed: int) -> list[int]:
    ids: list[int] = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    spread = expected - expected.mean(dim=-1, keepdim=True)
    return float((found - expected).norm() / spread.norm().clamp_min(1e-12))
