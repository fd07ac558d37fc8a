"""The Kubernetes client's own arithmetic: patches that say only what differs."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from smartspec_operator.kube import Api, merge_patch

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


class Server:
    """An API server that has budgets in these versions of their API, and answers a write with what was written."""

    def __init__(self, *versions: str) -> None:
        self.versions = set(versions)
        self.told: list[tuple[str, Any]] = []

    async def param_serialize(self, method: str, path: str, **more: Any) -> tuple[str, Any]:
        """The request."""
        return path, more["body"]

    async def call_api(self, path: str, body: Any, **more: Any) -> "Answer":
        """The answer."""
        if body is not None:
            self.told.append((path.split("/namespaces")[0], body["apiVersion"]))
            return Answer(200, body)
        version = path.removeprefix("/apis/")
        resources = [{"kind": "PodDisruptionBudget"}] if version in self.versions else []
        return Answer(200 if version in self.versions else 404, {"resources": resources})


class Answer:
    """Status and body of a response."""

    def __init__(self, status: int, body: Any) -> None:
        self.status, self._body = status, body

    async def read(self) -> bytes:
        """The body."""
        return msgspec.json.encode(self._body)


async def test_a_kind_is_written_in_the_version_that_the_server_has() -> None:
    """The newest one of both; an older one where there is no other, until the cluster is upgraded."""
    server = Server("policy/v1beta1")
    api = Api(server)  # type: ignore[arg-type]
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x", "namespace": "d"}}
    for versions in ({"policy/v1beta1"}, {"policy/v1beta1", "policy/v1"}, {"policy/v1"}):
        server.versions = versions
        assert await api.knows("PodDisruptionBudget")
        await api.apply(budget)
    assert server.told == [(f"/apis/{v}", v) for v in ("policy/v1beta1", "policy/v1", "policy/v1")]
    server.versions = set()
    assert not await api.knows("PodDisruptionBudget")


@given(objects, objects)
def test_a_patch_turns_old_into_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Whatever was there before, fields that are gone included."""
    assert merged(old, merge_patch(old, new)) == new


@given(objects)
def test_equal_objects_need_no_patch(value: dict[str, Any]) -> None:
    """An empty patch is what keeps the operator from writing."""
    assert merge_patch(value, value) == {}
