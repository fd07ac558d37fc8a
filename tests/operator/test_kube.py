"""The Kubernetes client's own arithmetic: patches that say only what differs."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.kube import merge_patch

leaves = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
objects = st.recursive(
    st.dictionaries(st.sampled_from("abc"), leaves, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(leaves, inner), max_size=3),
    max_leaves=6,
)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, as the standard spells it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(objects, objects)
def test_a_patch_turns_old_into_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Whatever was there before, fields that are gone included."""
    assert merged(old, merge_patch(old, new)) == new


@given(objects)
def test_equal_objects_need_no_patch(value: dict[str, Any]) -> None:
    """An empty patch is what keeps the operator from writing."""
    assert merge_patch(value, value) == {}
