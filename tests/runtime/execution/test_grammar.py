"""Texts stay within their grammar and end only where it says, speculated or not; what is no grammar is refused."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from markov import MarkovModel, ToyRequest, generate
from smartspec.execution.grammar import MAX_CHARACTERS, MAX_NESTING, GrammarCompiler
from smartspec.policy.types import Proposer, Verifier
from smartspec.scheduling.grammar import GrammarError, GrammarKind, GrammarSpec
from smartspec.scheduling.request import RuledText, SamplingParams
from tiny import EOS, byte_tokenizer

VOCAB = 384
WORDS = byte_tokenizer(VOCAB)
END = WORDS.convert_tokens_to_ids(EOS)
OTHER_END = VOCAB - 1
"""Some models have several tokens that end a text, like a word of the vocabulary that is used for nothing else."""
SPACES = WORDS.encode(" \n\t")
COMPILER = GrammarCompiler(WORDS, vocab_size=VOCAB, eos_token_ids=frozenset({END}))

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["customer", "supplier"]},
        "tags": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "is_new": {"type": "boolean"},
    },
    "required": ["name", "kind", "tags", "is_new"],
    "additionalProperties": False,
}


def model(seed: int) -> MarkovModel:
    """A random model that is not fond of white space."""
    table = MarkovModel.random(VOCAB, seed).table
    table[:, SPACES] -= 4.0
    return MarkovModel(table)


def schema_spec(schema: Any) -> GrammarSpec:
    """A JSON schema as a spec."""
    return GrammarSpec("json_schema", json.dumps(schema))


def text_of(tokens: Sequence[int]) -> tuple[str, bool]:
    """The text up to its end, and whether it has one."""
    ended = END in tokens
    return WORDS.decode(tokens[: tokens.index(END)] if ended else tokens), ended


few = st.integers(0, 2)
constants = st.one_of(st.integers(-(2**53), 2**53), st.text(max_size=6), st.none())
schemas = st.recursive(
    st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(
            lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
            st.integers(-1000, 1000),
            st.integers(0, 2000),
        ),
        st.builds(lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m}, *[st.integers(0, 4)] * 2),
        st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)),
        st.builds(lambda value: {"const": value}, constants),
        st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]{2}$"}),
    ),
    lambda inner: st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "minItems": n, "maxItems": n + 2}, inner, few),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda properties, some: {
                "type": "object",
                "properties": properties,
                "required": [name for index, name in enumerate(properties) if some >> index & 1],
                "additionalProperties": False,
            },
            st.dictionaries(st.text(st.sampled_from("abcxyz é\"\\"), min_size=1, max_size=6), inner, max_size=3),
            st.integers(0, 7),
        ),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=schemas, seed=st.integers(0, 5), length=st.integers(0, 5), temperature=st.sampled_from([0.0, 1.0]))
def test_random_schemas_give_valid_json(schema: dict[str, Any], seed: int, length: int, temperature: float) -> None:
    """Whatever the schema, model and speculation: a text that ends is valid by the schema."""
    sampling = SamplingParams(temperature=temperature, seed=seed)
    request = ToyRequest(
        seed, sampling, "greedy" if temperature == 0 else "coupled", lengths=(length,),
        rule=COMPILER.compile(schema_spec(schema)).rule(),
    )  # fmt: skip
    [tokens] = generate(model(seed), model(seed + 1), [request], 400, eos_token_ids=frozenset({END}))
    text, ended = text_of(tokens)
    if ended:
        jsonschema.validate(json.loads(text), schema)
        assert set(tokens[tokens.index(END) :]) == {END}
    else:
        assert len(tokens) >= 400


@pytest.mark.parametrize("verifier", ["greedy", "coupled"])
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_speculation_changes_no_text(verifier: Verifier, proposer: Proposer) -> None:
    """Eight requests at once, each with its own rule: every length gives the text of length 0, and all of them end."""
    sampling = SamplingParams(temperature=0.0 if verifier == "greedy" else 0.9)
    target, grammar = model(3), COMPILER.compile(schema_spec(PERSON))
    draft = MarkovModel(target.table + 0.4 * MarkovModel.random(VOCAB, 9).table)

    def texts(*lengths: int) -> list[tuple[int, ...]]:
        requests = [
            ToyRequest(seed, sampling, verifier, proposer, lengths, (seed,), grammar.rule()) for seed in range(8)
        ]
        return generate(target, draft, requests, 220, eos_token_ids=frozenset({END}))

    plain = texts(0)
    assert all(text_of(tokens)[1] for tokens in plain)
    for tokens in plain:
        jsonschema.validate(json.loads(text_of(tokens)[0]), PERSON)
    assert texts(4) == texts(1, 6, 0, 3, 2) == plain


def test_rejection_keeps_to_the_grammar() -> None:
    """Under rejection sampling, too, whatever the draft proposes."""
    grammar = COMPILER.compile(schema_spec(PERSON))
    requests = [ToyRequest(seed, SamplingParams(), "rejection", lengths=(5,), rule=grammar.rule()) for seed in range(8)]
    texts = [text_of(tokens) for tokens in generate(model(1), model(2), requests, 220, eos_token_ids=frozenset({END}))]
    assert sum(ended for _, ended in texts) >= 6
    for text, ended in texts:
        if ended:
            jsonschema.validate(json.loads(text), PERSON)


def test_a_draft_under_the_grammar_is_mostly_right() -> None:
    """A draft equal to the target proposes what the grammar lets through: nothing is rejected."""
    target, draft = model(4), model(4)
    rule = COMPILER.compile(schema_spec(PERSON)).rule()
    generate(target, draft, [ToyRequest(1, SamplingParams(), "coupled", "draft", (4,), rule=rule)], 100)
    assert len(draft.calls) <= 80


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_rule_depends_on_the_text_alone(data: st.DataObject) -> None:
    """Asked row by row or all at once, about paths that are then left, after any portions: the rows are the same."""
    grammar = COMPILER.compile(GrammarSpec("regex", "(ab|abc|b)*(d|de)"))
    text = RuledText(SamplingParams(), [0], 1)
    used = grammar.rule()
    letters = [WORDS.encode(letter)[0] for letter in "abcde"] + [END]
    for _ in range(6):
        for _ in range(data.draw(st.integers(0, 3))):
            ahead = data.draw(st.lists(st.sampled_from(letters), max_size=4))
            first = data.draw(st.integers(0, len(ahead)))
            rows, fresh = torch.zeros(len(ahead) + 1 - first, VOCAB), torch.zeros(len(ahead) + 1, VOCAB)
            used.adjust(rows, text, ahead, first)
            other = grammar.rule()
            other.adjust(fresh, text, ahead, 0)
            permitted = other.permits(text, ahead)
            assert used.permits(text, ahead) == permitted
            # Behind a forbidden token rows may be anything.
            assert torch.equal(rows[: max(0, permitted + 1 - first)], fresh[first : permitted + 1])
        row = torch.zeros(1, VOCAB)
        used.adjust(row, text, (), 0)
        allowed = (row[0] == 0).nonzero()[:, 0].tolist()
        text.token_ids = [*text.token_ids, data.draw(st.sampled_from(allowed))]


def test_several_tokens_may_end_a_text() -> None:
    """All of them where the text may end, none of them before, and only they afterwards."""
    ends = frozenset({END, OTHER_END})
    rule = GrammarCompiler(WORDS, vocab_size=VOCAB, eos_token_ids=ends).compile(GrammarSpec("regex", "ab?")).rule()
    a, b = WORDS.encode("a")[0], WORDS.encode("b")[0]
    text, rows = RuledText(SamplingParams(), [0], 1), torch.zeros(4, VOCAB)
    rule.adjust(rows, text, [a, b, OTHER_END], 0)
    allowed = [set((row == 0).nonzero()[:, 0].tolist()) for row in rows]
    assert not ends & allowed[0]
    assert ends <= allowed[1]
    assert allowed[2] == allowed[3] == ends


def test_models_may_know_more_or_fewer_tokens() -> None:
    """A padded target's extra tokens are banned; a draft that knows none of the allowed ones is left alone."""
    rule = COMPILER.compile(GrammarSpec("choice", '["yes"]')).rule()
    text, wide, narrow = RuledText(SamplingParams(), [0], 1), torch.zeros(1, VOCAB + 9), torch.zeros(1, 3)
    rule.adjust(wide, text, (), 0)
    rule.adjust(narrow, text, (), 0)
    assert torch.isinf(wide[0, VOCAB:]).all()
    assert (narrow == 0).all()


def test_forced_tokens_spell_what_must_follow() -> None:
    """Where there is one way to go on, it is told; where there are two, nothing is."""
    rule = COMPILER.compile(schema_spec({"type": "object", "properties": {"customer": {"enum": ["yes", "no"]}},
                                         "required": ["customer"], "additionalProperties": False})).rule()  # fmt: skip
    text = RuledText(SamplingParams(), [0, *WORDS.encode('{"')], 1)
    forced = rule.forces(text)
    assert forced
    assert '{"customer":'.startswith('{"' + WORDS.decode(list(forced)))
    assert rule.permits(text, forced) == len(forced)
    text.token_ids = [0, *WORDS.encode('{"customer":"')]
    assert list(rule.forces(text)) == []


def test_a_schema_cannot_ask_for_what_is_no_json() -> None:
    """The library's own switches inside a schema do nothing."""
    schema = PERSON | {"x-guidance": {"item_separator": ";", "key_separator": "=", "lenient": True}}
    [tokens] = generate(model(3), model(3), [ToyRequest(3, rule=COMPILER.compile(schema_spec(schema)).rule())], 300)
    jsonschema.validate(json.loads(text_of(tokens)[0]), PERSON)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("maximum", 2**63 - 1), ("exclusiveMaximum", 2**64), ("minimum", -(2**63)), ("minimum", -(2**63) + 1),
        ("maximum", 2**53 + 1), ("minimum", 2**53 + 1), ("exclusiveMinimum", -(2**53) - 1),
    ],
)  # fmt: skip
def test_bounds_beyond_doubles_are_kept(name: str, bound: int) -> None:
    """The bound of 64-bit integers, say: what is allowed may be less, never more."""
    grammar = COMPILER.compile(schema_spec({"type": "integer", name: bound}))
    inwards, text = -1 if "max" in name.lower() else 1, RuledText(SamplingParams(), [0], 1)
    near = min(bound, 2**63) + inwards * 4096
    for number, is_allowed in ((near, True), (bound - inwards, False), (bound - inwards * 4096, False)):
        tokens = [*WORDS.encode(str(number)), END]
        assert (grammar.rule().permits(text, tokens) == len(tokens)) == is_allowed, number


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("json_schema", '{"type": "strange"}', "strange"),
        ("json_schema", '{"type": ', ""),
        ("json_schema", '{"$ref": "https://example.com/schema"}', ""),
        ("json_schema", '{"type": "string", "pattern": "(?=a)"}', ""),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 1}', ""),
        ("json_schema", "[" * 5000, ""),
        ("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000, ""),
        ("json_schema", "false", ""),
        ("json_schema", '["string"]', "a schema is an object"),
        ("json_schema", '{"enum": [{"a": [9007199254740993]}]}', "integer"),
        ("regex", "(ab", ""),
        ("regex", "(" * 5000 + ")" * 5000, "nested"),
        ("grammar", "begin: WORD", ""),
        ("grammar", "start: " + "(" * (MAX_NESTING + 1) + '"a"' + ")" * (MAX_NESTING + 1), "nested"),
        ("grammar", "", ""),
        ("grammar", "\0", ""),
        ("grammar", "start ::= root", "root"),
        ("grammar", "root ::= (", ""),
        ("grammar", "root ::= x\n" * 10_000, "characters"),
        ("regex", "a?" * 6000, "characters"),
        ("regex", "a?" * 4000, ""),
        ("grammar", 'start: ("a" | start)* start', "Too many"),
        ("json_schema", '{"anyOf": [{"type": "string", "pattern": "' + "a?" * 3000 + '"}]}', "pattern"),
        ("json_schema", '"' + "x" * MAX_CHARACTERS["json_schema"] + '"', "characters"),
    ],
)
def test_what_is_no_grammar_is_refused(kind: GrammarKind, source: str, words: str) -> None:
    """With a short reason, and without harm."""
    with pytest.raises(GrammarError) as refused:
        COMPILER.compile(GrammarSpec(kind, source))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert 5 < len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("kind", "source", "accepted"),
    [
        ("choice", '["red \\"1\\"", "green\\n"]', {'red "1"', "green\n"}),
        ("regex", "[ab]{2}", {"aa", "ab", "ba", "bb"}),
        ("grammar", 'start: word word\nword: "a" | "b"', {"aa", "ab", "ba", "bb"}),
        ("grammar", 'root ::= word word\nword ::= "a" | "b"', {"aa", "ab", "ba", "bb"}),
    ],
)
def test_every_kind_gives_its_texts(kind: GrammarKind, source: str, accepted: set[str]) -> None:
    """Thirty texts of a random model are all among those that the grammar has, and not always the same."""
    grammar = COMPILER.compile(GrammarSpec(kind, source))
    requests = [ToyRequest(seed, prompt=(seed,), rule=grammar.rule()) for seed in range(30)]
    texts = {text_of(tokens) for tokens in generate(model(2), model(1), requests, 12, eos_token_ids=frozenset({END}))}
    assert {text for text, ended in texts if ended} <= accepted
    assert len(texts) > 1
