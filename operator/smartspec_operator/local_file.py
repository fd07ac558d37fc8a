"""A file as the API server: a SmartSpec and what it refers to, read again whenever it is edited."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from smartspec_operator.resource import GROUP, KIND, VERSION, Manifest

COMPANIONS = frozenset({"Secret", "ConfigMap"})


class FileError(ValueError):
    """The file cannot be read as a SmartSpec; the message says where and why."""


@dataclass(frozen=True)
class Documents:
    """What a file holds: the SmartSpec's body, as the API server would show it, and the Secrets beside it."""

    resource: Manifest
    companions: tuple[Manifest, ...] = ()


class ResourceFile:
    """One file, with the generation that an API server would count: it rises with each edit of the spec."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._documents: Documents | None = None
        self._text: str | None = None

    def read(self) -> Documents:
        """What the file says now; raises `FileError`, and then what it said before still counts.

        The text decides, not its time stamp: editors and version control play with those.
        """
        try:
            text = self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from None
        if self._documents is not None and text == self._text:
            return self._documents
        found = parse(text, self.path)
        before = self._documents
        generation = 1
        if before is not None:
            if found.resource["metadata"]["name"] != before.resource["metadata"]["name"]:
                raise FileError(f"{self.path}: metadata.name is immutable; stop and start again to serve another one")
            generation = before.resource["metadata"]["generation"]
            generation += found.resource.get("spec") != before.resource.get("spec")
        metadata = {"namespace": "default", **found.resource["metadata"], "uid": "local", "generation": generation}
        self._documents = replace(found, resource={**found.resource, "metadata": metadata})
        self._text = text
        return self._documents


def parse(text: str, path: Path) -> Documents:
    """The documents in *text*: one SmartSpec, Secrets and ConfigMaps; raises `FileError`.

    Model folders are found from *path*'s own folder.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise FileError(f"{path}: {' '.join(str(error).split())}") from None
    for document in documents:
        _check(document, path)
    resources = [document for document in documents if document["kind"] == KIND]
    if len(resources) != 1:
        raise FileError(f"{path}: needs one document of kind {KIND}, has {len(resources)}")
    companions = tuple(document for document in documents if document["kind"] != KIND)
    return Documents(_located(resources[0], path), companions)


def _check(document: Any, path: Path) -> None:
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise FileError(f"{path}: every document must be an object with apiVersion, kind and metadata")
    kind, version = document.get("kind"), document.get("apiVersion")
    if not document["metadata"].get("name"):
        raise FileError(f"{path}: {kind}: metadata.name: is required")
    if kind == KIND and version != f"{GROUP}/{VERSION}":
        raise FileError(f"{path}: apiVersion: must be {GROUP}/{VERSION}, not {version}")
    if kind != KIND and kind not in COMPANIONS:
        raise FileError(f"{path}: kind: {kind} means nothing here; {KIND}, {' and '.join(sorted(COMPANIONS))} do")


def _located(resource: dict[str, Any], path: Path) -> dict[str, Any]:
    """*resource* with its model folders as absolute paths; hub ids are left as they are."""
    spec = resource.get("spec")
    if not isinstance(spec, dict):
        return resource  # the spec's own validation says what is wrong
    spec = dict(spec)
    if isinstance(spec.get("model"), dict):
        spec["model"] = _with_folder(spec["model"], path, "spec.model.source")
    speculation = spec.get("speculation")
    if isinstance(speculation, dict) and isinstance(speculation.get("draft"), dict):
        draft = _with_folder(speculation["draft"], path, "spec.speculation.draft.source")
        spec["speculation"] = {**speculation, "draft": draft}
    return {**resource, "spec": spec}


def _with_folder(part: dict[str, Any], path: Path, field: str) -> dict[str, Any]:
    source = part.get("source")
    if not isinstance(source, str) or not source:
        return part
    folder = (path.parent / Path(source).expanduser()).resolve()
    if folder.is_dir():
        return {**part, "source": str(folder)}
    if source.startswith(("/", "./", "../", "~")):
        raise FileError(f"{path}: {field}: there is no folder {folder}")
    return part
