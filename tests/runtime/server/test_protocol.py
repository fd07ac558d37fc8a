"""Bodies: whatever JSON comes, it is either understood or refused with 400 and a reason."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fake_engine import INFO
from smartspec.server.errors import ApiError
from smartspec.server.parameters import room_for_answer, sampling_params, speculation_params
from smartspec.server.protocol import HARMLESS, UNSUPPORTED, ChatBody, CompletionBody, decode_body

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text("ab é\n🙂", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [field.name for field in msgspec.structs.fields(CompletionBody)] + list(UNSUPPORTED)
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)


@given(BODIES, st.sampled_from([CompletionBody, ChatBody]))
def test_any_json_is_understood_or_refused(fields: dict[str, Any], kind: type[Any]) -> None:
    """No value of any field gets through as anything but parameters the engine can take."""
    required: dict[str, Any] = {"prompt": [1], "messages": [{"role": "user", "content": "x"}]}
    status = 200
    try:
        body, ignored = decode_body(msgspec.json.encode(required | fields), kind)
        max_tokens = room_for_answer(INFO, 1, body.max_tokens, param="prompt")
        sampling = sampling_params(INFO, body, max_tokens=max_tokens)
        speculation = speculation_params(body)
    except ApiError as refusal:
        status = refusal.status
    if status != 200:
        assert status == 400
        return
    assert 0 <= sampling.temperature <= 2
    assert 0 < sampling.top_p <= 1
    assert 0 <= sampling.min_tokens <= sampling.max_tokens < INFO.max_model_len
    assert sampling.seed is None or 0 <= sampling.seed < 2**63
    assert "" not in sampling.stop
    assert speculation.mode != "fixed" or speculation.max_tokens is not None
    assert not set(ignored) & (set(UNSUPPORTED) | HARMLESS)


def test_no_field_is_both_served_and_refused() -> None:
    """The table of refused fields names none that is served everywhere."""
    completion, chat = (
        {field.encode_name for field in msgspec.structs.fields(kind)} for kind in (CompletionBody, ChatBody)
    )
    assert not (completion | chat) & HARMLESS
    assert not completion & chat & UNSUPPORTED.keys()
