"""What others put into a child: which of it is not theirs to put there, and what takes it out again.

A server-side apply takes back the fields that it names, and leaves a map's other keys to whoever set them. Where a map
is ours as a whole, one more key is damage: a Service with one more key in its selector selects nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from smartspec_operator.resource import FIELD_MANAGER, Manifest

WHOLE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "Service": (("spec", "selector"), ("spec", "ports")),
    "Deployment": (("spec", "template", "metadata", "labels"), ("spec", "template", "spec")),
    "ConfigMap": (("data",), ("binaryData",)),
    "PodMonitor": (("spec", "selector"),),
    "InferencePool": (("spec", "selector"),),
    "PodDisruptionBudget": (("spec", "selector"), ("spec", "minAvailable")),
}
"""What is ours as a whole, by kind: what runs, and what finds it. Annotations are not, those of the pods' template
neither: `kubectl rollout restart` writes one."""
COUNTED = ("resourceVersion", "managedFields", "generation")
"""What the server counts about an object; no change of it is anybody's wish."""
SHOWN = 3

Path = tuple[str, ...]
"""Keys from the root of an object; an item of a list is named in brackets."""


def strays(live: Manifest, wish: Manifest) -> list[Path]:
    """Entries of *live* that others manage, in what is ours as a whole, and that *wish* does not name.

    By managers rather than by presence: defaults and what admission adds are nobody's, and come back by themselves.
    """
    found: dict[Path, None] = {}
    for entry in live["metadata"].get("managedFields", ()):
        if not _is_apply_of_ours(entry):
            for path in WHOLE.get(wish["kind"], ()):
                found |= dict.fromkeys(_strays(_only(entry.get("fieldsV1") or {}, path), live, wish, ()))
    return list(found)


def is_ours(live: Manifest, path: Path) -> bool:
    """Whether the value at *path* is what we applied; True where nothing is known of managers."""
    entries = live["metadata"].get("managedFields")
    return not entries or any(
        _is_apply_of_ours(entry) and _only(entry.get("fieldsV1") or {}, path) for entry in entries
    )


def managers(live: Manifest) -> tuple[str, ...]:
    """Who wrote the object beside us, the latest one first."""
    entries = [entry for entry in live["metadata"].get("managedFields", ()) if entry.get("manager") != FIELD_MANAGER]
    entries.sort(key=lambda entry: str(entry.get("time", "")), reverse=True)
    return tuple(dict.fromkeys(str(entry.get("manager", "")) for entry in entries))


def _is_apply_of_ours(entry: Mapping[str, Any]) -> bool:
    return (entry.get("manager"), entry.get("operation")) == (FIELD_MANAGER, "Apply")


def _only(fields: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The part of a manager's *fields* that lies at *path*."""
    if not path:
        return fields
    key = f"f:{path[0]}"
    if key not in fields or (len(path) > 1 and not _only(fields[key], path[1:])):
        return {}
    return {key: _only(fields[key], path[1:])}


def _strays(fields: Mapping[str, Any], live: Any, wish: Any, path: Path) -> Iterator[Path]:
    for field, inner in fields.items():
        sort, _, text = field.partition(":")
        if sort == "f" and isinstance(live, Mapping) and text in live:
            if not isinstance(wish, Mapping) or text not in wish:
                yield (*path, text)
            else:
                yield from _strays(inner, live[text], wish[text], (*path, text))
        elif sort == "k":
            key = msgspec.json.decode(text)
            there, wished = _item(live, key), _item(wish, key)
            place = (*path, f"[{'/'.join(str(value) for value in key.values())}]")
            if there is not None and wished is None:
                yield place
            elif there is not None:
                yield from _strays(inner, there, wished, place)


def _item(items: Any, key: Mapping[str, Any]) -> Any:
    """The item of a list that its *key* tells from the others."""
    found = items if isinstance(items, list) else []
    return next((item for item in found if isinstance(item, Mapping) and key.items() <= item.items()), None)


def has_more(live: Any, wish: Any) -> bool:
    """Whether a list of *live* is longer than that of *wish*: others' ports, variables or containers beside ours."""
    if isinstance(live, Mapping) and isinstance(wish, Mapping):
        return any(has_more(live[key], value) for key, value in wish.items() if key in live)
    if not isinstance(live, list) or not isinstance(wish, list):
        return False
    if len(live) > len(wish):
        return True
    named = {item["name"]: item for item in live if isinstance(item, Mapping) and "name" in item}
    return any(has_more(named.get(item.get("name")), item) for item in wish if isinstance(item, Mapping))


def without(wish: Manifest, paths: Sequence[Path]) -> dict[str, Any]:
    """*wish* as a merge patch that takes *paths* out; what lies in a list goes with it, for lists are replaced."""
    patch = dict(wish)
    for path in paths:
        if not any(key.startswith("[") for key in path):
            patch = _nulled(patch, path)
    return patch


def _nulled(patch: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {**patch, path[0]: _nulled(patch[path[0]], path[1:]) if len(path) > 1 else None}


def substance(live: Manifest) -> dict[str, Any]:
    """What somebody may have wished of an object: all but its status and what the server counts."""
    metadata = {key: value for key, value in live["metadata"].items() if key not in COUNTED}
    return {**{key: value for key, value in live.items() if key != "status"}, "metadata": metadata}


def changes(before: Manifest, after: Manifest) -> frozenset[str]:
    """The paths at which two states of an object differ, for people; values are not told: some are secret."""
    return frozenset(_changes(substance(before), substance(after), ""))


def _changes(before: Any, after: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{path}[{key}]" if "." in key or "/" in key else f"{path}.{key}".lstrip(".")
            if key not in before or key not in after:
                yield place
            else:
                yield from _changes(before[key], after[key], place)
    elif isinstance(before, list) and isinstance(after, list) and (before or after):
        yield from _changes_of_items(before, after, path)
    elif before != after:
        yield path


def _changes_of_items(before: list[Any], after: list[Any], path: str) -> Iterator[str]:
    """Items by name where all have one; else the list as a whole."""
    if not all(isinstance(item, Mapping) and "name" in item for item in (*before, *after)):
        yield from [path] if before != after else []
        return
    old, new = ({item["name"]: item for item in items} for items in (before, after))
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            yield f"{path}[{name}]"
        else:
            yield from _changes(old[name], new[name], f"{path}[{name}]")


def shown(paths: frozenset[str]) -> str:
    """The first of *paths*, and how many more there are."""
    first = sorted(paths)[:SHOWN]
    return ", ".join(first) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
