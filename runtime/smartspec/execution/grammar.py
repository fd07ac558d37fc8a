"""Grammars compiled by llguidance: JSON schemas, regular expressions, choices, and grammars of the user's own."""

import json
import threading
from collections.abc import Mapping

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from smartspec.execution.grammar_rule import GrammarRule
from smartspec.scheduling.grammar import GrammarError, GrammarKind, GrammarSpec, in_style

MAX_CHARACTERS: Mapping[GrammarKind, int] = {
    "json_schema": 100_000,
    "regex": 10_000,
    "choice": 100_000,
    "grammar": 20_000,
    "calls": 100_000,
}
"""As much of a schema as OpenAI takes. The others are bounded by the time they can take: a regular expression of 80,000
characters keeps its compiler busy for half a minute before it is found to be too complex."""
REHEARSED_TOKENS = 8
MAX_NESTING = 64
"""Of brackets: what parses them goes down by recursion."""


class GrammarCompiler:
    """Compiles grammars over *tokenizer*, whose model has logits for *vocab_size* tokens; used from any thread."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, eos_token_ids: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._words: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, spec: GrammarSpec) -> "CompiledGrammar":
        """The grammar of *spec*; takes milliseconds, at worst a second or two. Raises GrammarError."""
        source = _serialise(spec)
        words = self._vocabulary()
        limits = llguidance.LLParserLimits(
            verbose_errors=False,
            precompute_large_lexemes=False,
            max_lexer_states=50_000,
            max_items_in_row=5_000,
        )
        matcher = llguidance.LLMatcher(words, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        _rehearse(matcher.deep_copy())
        return CompiledGrammar(matcher, self._vocab_size, self._eos_token_ids)

    def _vocabulary(self) -> llguidance.LLTokenizer:
        """The tokenizer as llguidance knows it, made at first use: a second for a large vocabulary."""
        with self._lock:
            if self._words is None:
                try:
                    eos = min(self._eos_token_ids) if self._eos_token_ids else None
                    self._words = from_tokenizer(self._tokenizer, n_vocab=self._vocab_size, eos_token=eos)
                except (ValueError, TypeError, AttributeError) as error:
                    raise GrammarError(f"this model's tokenizer cannot be put under a grammar: {error}") from error
            return self._words


class CompiledGrammar:
    """Implements `smartspec.scheduling.grammar.Grammar`."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def rule(self) -> GrammarRule:
        """A rule for one new text."""
        return GrammarRule(self._matcher.deep_copy(), self._vocab_size, self._eos_token_ids)


def _rehearse(matcher: llguidance.LLMatcher) -> None:
    """Go a few tokens into a text: a grammar too complex for its beginning is better refused than begun."""
    for _ in range(REHEARSED_TOKENS):
        allowed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        if matcher.is_stopped() or not allowed.any():
            return
        byte = int(allowed.nonzero()[0][0])
        bits = int(allowed[byte])
        if not matcher.consume_token(8 * byte + (bits & -bits).bit_length() - 1):
            raise GrammarError(_first_line(matcher.get_error()))


def _serialise(spec: GrammarSpec) -> str:
    """The grammar in llguidance's own form; raises GrammarError for what is too large, or is none at all."""
    most = MAX_CHARACTERS[spec.kind]
    if len(spec.source) > most:
        raise GrammarError(f"it has {len(spec.source)} characters, more than {most}")
    matcher = llguidance.LLMatcher
    match spec.kind:
        case "json_schema":
            try:
                schema: str = matcher.grammar_from_json_schema(_styled(spec.source))
            except ValueError as error:
                raise GrammarError(_first_line(str(error))) from None
            return schema
        case "regex":
            _check_nesting(spec.source)
            regex: str = matcher.grammar_from_regex(spec.source)
            return regex
        case "choice":
            choices = json.loads(spec.source)
            # One terminal, not as many rules: the parser would carry all of them along.
            lark = "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)
            return str(matcher.grammar_from_lark(lark))
        case "grammar":
            _check_nesting(spec.source)
            return str(matcher.grammar_from_lark(_as_lark(spec.source)))
        case "calls":
            return str(matcher.grammar_from_lark(spec.source))


def _as_lark(source: str) -> str:
    """*source*, which may be GBNF, in Lark's notation."""
    if "::=" not in source:
        return source
    try:
        return str(gbnf_to_lark(source))
    except Exception as error:  # the converter raises just this
        raise GrammarError(_first_line(str(error))) from None


def _styled(schema: str) -> str:
    """*schema* with this server's style of JSON, whatever style it asks for itself."""
    try:
        parsed = json.loads(schema)
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    if isinstance(parsed, bool):
        parsed = {} if parsed else {"not": {}}
    if not isinstance(parsed, dict):
        raise GrammarError("a schema is an object, true or false")
    return json.dumps(in_style(parsed))


def _check_nesting(source: str) -> None:
    depth = deepest = 0
    for character in source:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_NESTING:
        raise GrammarError(f"its brackets are nested more than {MAX_NESTING} deep")


def _first_line(message: str) -> str:
    """What is wrong, without the compiler's picture of where."""
    return next((line.strip() for line in message.splitlines() if line.strip()), "it cannot be compiled")[:400]
