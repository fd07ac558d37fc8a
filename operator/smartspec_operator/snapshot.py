"""A `Cluster` over the Kubernetes API that reads each kind once per tick, and writes only what differs."""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from smartspec_operator import foreign
from smartspec_operator.cluster import NotOursError, controller_of
from smartspec_operator.contest import Contest, contested
from smartspec_operator.keys import Secrets
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.recent import RecentFailures
from smartspec_operator.resource import FIELD_MANAGER, INTEGRATIONS, LABEL_INSTANCE, LABEL_MANAGED_BY, Manifest

DISCOVERY_SECONDS = 60.0
"""How long an answer about which kinds there are is trusted."""

Key = tuple[str, str, str]
"""An object: kind, namespace, name."""


@dataclass(frozen=True)
class Agreement:
    """What was applied (`wish`, a digest) for the SmartSpec `owner`, and what the server made of it."""

    owner: str | None
    wish: bytes
    version: str
    substance: bytes

    def holds(self, wish: bytes, live: Manifest) -> bool:
        """Whether *live* is still what came of applying the same."""
        return self.wish == wish and self.is_intact(live)

    def is_intact(self, live: Manifest | None) -> bool:
        """Whether *live* is still what came of applying."""
        return live is not None and (self.version == _version(live) or self.substance == _substance(live))


@dataclass(frozen=True)
class Checked:
    """A wish that was tried out: the live object then, and what the server would make of it.

    `patch` is what takes out what others put into that which is ours as a whole, where an apply alone would leave it.
    """

    wish: bytes
    live: Manifest | None
    tried: Manifest
    patch: Manifest | None = None

    @property
    def paths(self) -> frozenset[str]:
        """What it changes of an object that is there."""
        return frozenset() if self.live is None else foreign.changes(self.live, self.tried)


@dataclass(frozen=True)
class Repair:
    """A child that others had edited or deleted, and that was written again; `contest` where it was edited."""

    child: Manifest
    contest: Contest | None
    managers: tuple[str, ...] = ()


class KubernetesCluster:
    """What outlives a tick: which objects are known to agree with what was applied, and the Secrets read lately.

    Only a cache: a new process tries every child once, and finds that they agree already.
    """

    def __init__(self, api: Api, namespace: str | None) -> None:
        self.api = api
        self.namespace = namespace
        self._agreed: dict[Key, Agreement] = {}
        self._contests: dict[Key, Contest] = {}
        self.secrets = Secrets(api)
        self._kinds: dict[str, tuple[float, bool]] = {}
        self.failures = RecentFailures()

    def snapshot(self) -> "Snapshot":
        """A `Cluster` that reads each kind at most once, for all resources together."""
        return Snapshot(self)

    def forget(self, owners: Collection[str]) -> None:
        """Drop what is kept for SmartSpecs that are gone (by their uids), and Secrets that are trusted no more."""
        if owners:
            self._agreed = {key: found for key, found in self._agreed.items() if found.owner not in owners}
            self._contests = {key: found for key, found in self._contests.items() if key in self._agreed}
        self.secrets.forget()

    async def knows(self, kind: str) -> bool:
        """Whether the server has *kind*, as of `DISCOVERY_SECONDS` ago or less."""
        asked, known = self._kinds.get(kind, (0.0, False))
        if kind not in self._kinds or time.monotonic() - asked > DISCOVERY_SECONDS:
            known = await self.api.knows(kind)
            self._kinds[kind] = (time.monotonic(), known)
        return known

    async def check(self, manifest: Manifest, live: Manifest | None) -> Checked | None:
        """Try *manifest* out where *live* is not known to agree with it: None where it is.

        Raises `NotOursError`, and what the server would refuse.
        """
        key, wish = _key(manifest), _digest(manifest)
        agreement = self._agreed.get(key)
        if live is not None and agreement is not None and agreement.holds(wish, live):
            return None
        # Listed by label: an object that somebody else made under the same name shows only when asked for by name.
        found = await self.api.get(*key)
        if found is not None and controller_of(found) != controller_of(manifest):
            raise NotOursError(f"{key[0]} {key[2]} exists and is not controlled by this SmartSpec")
        if self._is_left(key, wish, found):
            return None
        checked = await self._try(manifest, wish, found)
        if self._is_left(key, wish, found, checked.paths):
            self._contests[key] = replace(self._contests[key], left=b"" if found is None else _substance(found))
            return None
        return checked

    async def _try(self, manifest: Manifest, wish: bytes, found: Manifest | None) -> Checked:
        # An apply that changes nothing may still be a write (of who manages which field): ask before it.
        strays: list[foreign.Path] = []
        try:
            tried = await self.api.apply(manifest, dry_run=True)
        except ApiError as error:
            # Beside what others put in, ours may be refused: two ports of one name.
            if found is None or error.status != 422:
                raise
            strays = foreign.strays(found, manifest)
        else:
            strays = foreign.strays(tried, manifest)
            if found is None or not (strays or foreign.has_more(tried, manifest)):
                return Checked(wish, found, tried)
        patch = foreign.without(manifest, strays)
        # Only what was looked at: if somebody was quicker, the next tick looks again.
        patch["metadata"] = {**patch["metadata"], "resourceVersion": _version(found)}
        return Checked(wish, found, await self.api.merge(patch, dry_run=True), patch)

    def _is_left(self, key: Key, wish: bytes, live: Manifest | None, paths: frozenset[str] | None = None) -> bool:
        """Whether the object is another's for now: he writes to the same *paths* again and again.

        Without *paths*, whether it is as it was when that was found. What we wish anew is written all the same, except
        into the policy's ConfigMap: its contents stand in the status, too.
        """
        contest, agreement = self._contests.get(key), self._agreed.get(key)
        if contest is None or live is None or time.monotonic() >= contest.until:
            return False
        if key[0] != "ConfigMap" and (agreement is None or agreement.wish != wish):
            return False
        return contest.left == _substance(live) if paths is None else contest.covers(paths)

    async def apply(self, manifest: Manifest, checked: Checked) -> Repair | None:
        """Write what was tried out, where it changes something; what that repaired, where others had undone it."""
        key, applied, repair = _key(manifest), checked.tried, None
        if checked.live is None or _substance(applied) != _substance(checked.live):
            if self._is_undone(key, checked):
                repair = self._repair(manifest, checked)
            if checked.patch is not None:
                await self.api.merge(checked.patch)
            applied = await self.api.apply(manifest)
        if repair is not None and repair.contest is not None:
            self._contests[key] = repair.contest
        self._agreed[key] = Agreement(controller_of(manifest), checked.wish, _version(applied), _substance(applied))
        return repair

    def _is_undone(self, key: Key, checked: Checked) -> bool:
        """Whether writing this takes back what others did, rather than saying something new."""
        before = self._agreed.get(key)
        if before is None:
            return checked.patch is not None
        # The policy comes back with what was learned since; and nobody else has any business with it.
        return before.wish == checked.wish or (key[0] == "ConfigMap" and not before.is_intact(checked.live))

    def _repair(self, manifest: Manifest, checked: Checked) -> Repair:
        if checked.live is None:
            return Repair(manifest, None)
        contest = contested(checked.paths, self._contests.get(_key(manifest)), time.monotonic())
        return Repair(manifest, contest, foreign.managers(checked.live))

    async def mark(self, manifest: Manifest, live: Manifest | None) -> None:
        """Annotate an object that is not ours to apply; nothing when it says so already, or is gone."""
        metadata = manifest["metadata"]
        annotations = metadata["annotations"]
        if live is None or annotations.items() <= (live["metadata"].get("annotations") or {}).items():
            return
        patch = {"metadata": {"annotations": annotations}}
        await self.api.patch(manifest["kind"], metadata["namespace"], metadata["name"], patch)


@dataclass
class _Listed:
    """All objects of a kind, by name and by instance: hundreds of resources look into the same list."""

    by_name: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    by_instance: defaultdict[tuple[str, str | None], list[Manifest]] = field(default_factory=lambda: defaultdict(list))


class Snapshot:
    """One moment of the cluster; a `Cluster`. However many resources there are, each kind costs one request.

    `repaired` are children that others had edited or deleted, and that were written again.
    """

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.started = time.monotonic()
        self.repaired: list[Repair] = []
        self._cluster = cluster
        self._lists: dict[str, asyncio.Task[_Listed]] = {}
        self._checked: dict[Key, tuple[Manifest, Checked | None]] = {}

    async def knows(self, kind: str) -> bool:
        """Whether the server has *kind*."""
        return await self._cluster.failures.ask(kind, lambda: self._cluster.knows(kind))

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object as it was when its kind was first asked for; one that has lost its labels is asked for by name."""
        if kind == "Secret":
            return await self._cluster.secrets.get(namespace, name)
        live = (await self._all(kind)).by_name.get((namespace, name))
        return live if live is not None else await self._cluster.api.get(kind, namespace, name)

    async def has_key(self, namespace: str, name: str, key: str) -> bool | None:
        """Whether a Secret has it, as of a few seconds ago."""
        return await self._cluster.secrets.has_key(namespace, name, key)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> Sequence[Manifest]:
        """The same for all with *labels*."""
        listed = await self._all(kind)
        return [
            live
            for live in listed.by_instance.get((namespace, labels.get(LABEL_INSTANCE)), ())
            if labels.items() <= (live["metadata"].get("labels") or {}).items()
        ]

    async def check(self, manifest: Manifest) -> None:
        """Try *manifest* out where the moment does not show it written."""
        if "ownerReferences" not in manifest["metadata"]:
            return
        self._checked[_key(manifest)] = manifest, await self._check(manifest)

    async def apply(self, manifest: Manifest) -> None:
        """Write *manifest* where the moment does not show it written."""
        if "ownerReferences" not in manifest["metadata"]:
            await self._cluster.mark(manifest, await self._listed(manifest))
            return
        wish, checked = self._checked.pop(_key(manifest), (None, None))
        if wish is not manifest:
            checked = await self._check(manifest)
        if checked is not None and (repair := await self._cluster.apply(manifest, checked)) is not None:
            self.repaired.append(repair)

    async def _check(self, manifest: Manifest) -> Checked | None:
        checking = partial(self._cluster.check, manifest, await self._listed(manifest))
        if manifest["kind"] not in INTEGRATIONS:
            return await checking()
        return await self._cluster.failures.ask((_key(manifest), _digest(manifest)), checking)

    async def create(self, manifest: Manifest) -> None:
        """Make a Secret unless there is one."""
        if await self._cluster.secrets.create(manifest):
            self.repaired.append(Repair(manifest, None))

    async def delete(self, manifest: Manifest) -> None:
        """Remove this very object."""
        metadata = manifest["metadata"]
        await self._cluster.api.delete(manifest["kind"], metadata["namespace"], metadata["name"], metadata["uid"])

    async def _listed(self, manifest: Manifest) -> Manifest | None:
        """The object as its kind's list has it."""
        kind, namespace, name = _key(manifest)
        return (await self._all(kind)).by_name.get((namespace, name))

    async def _all(self, kind: str) -> _Listed:
        if kind not in self._lists:
            asked = partial(self._read, kind)
            optional = kind in INTEGRATIONS
            reading = self._cluster.failures.ask(("list", kind), asked) if optional else asked()
            self._lists[kind] = asyncio.create_task(reading)
        return await asyncio.shield(self._lists[kind])

    async def _read(self, kind: str) -> _Listed:
        selector = f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"
        found = _Listed()
        for live in await self._cluster.api.list(kind, self._cluster.namespace, selector):
            metadata = live["metadata"]
            found.by_name[metadata["namespace"], metadata["name"]] = live
            found.by_instance[metadata["namespace"], metadata["labels"].get(LABEL_INSTANCE)].append(live)
        return found


def _key(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return (manifest["kind"], metadata["namespace"], metadata["name"])


def _version(live: Manifest | None) -> str:
    return "" if live is None else str(live["metadata"].get("resourceVersion", ""))


def _substance(live: Manifest) -> bytes:
    """What tells whether someone changed the object."""
    return _digest(foreign.substance(live))


def _digest(value: Manifest) -> bytes:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()
