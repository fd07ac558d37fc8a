"""Who may use the public port: API keys from a file that may change under us, or one from the environment."""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smartspec.config import ConfigError

log = logging.getLogger(__name__)

RELOAD_SECONDS = 2.0
"""How often the file is looked at: a withdrawn key works for so long."""
MAX_KEYS = 1_000
"""Each request is compared with all of them."""

_KEY = re.compile(r"[!-~]{1,512}")
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key: its SHA-256, and the name that logs, traces and fairness know it by."""

    name: str
    digest: bytes


def api_key(text: str, name: str) -> ApiKey:
    """The key *text* under *name*."""
    return ApiKey(name, _digest(text.encode()))


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """The keys in *file*, one a line: `KEY` or `KEY NAME`; keys of one name share what is fair for one.

    Empty lines and lines that begin with # do not count. Raises ConfigError, which never repeats what a line says: an
    empty file is a mistake in a mount, not an open door, and neither is a file that locks everybody out.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"api_key_file {file}: {reason}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not (words := line.split()) or line.lstrip().startswith("#"):
            continue
        if len(words) > 2 or not _KEY.fullmatch(words[0]) or not all(map(_NAME.fullmatch, words[1:])):
            raise ConfigError(
                f"api_key_file {file}, line {number}: an api_key is printable ASCII without spaces (at most 512 "
                "characters); a name may follow it, of letters, digits and . _ @ - (at most 64)"
            )
        keys.append(api_key(words[0], words[1] if len(words) == 2 else f"key-{number}"))
    if not keys:
        raise ConfigError(f"api_key_file {file}: there is no api_key in it")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"api_key_file {file}: at most {MAX_KEYS} keys, got {len(keys)}")
    return tuple(keys)


class KeyRing:
    """The keys in force. No keys: everybody may, and nobody has a name."""

    def __init__(self, keys: Iterable[ApiKey] = (), file: Path | None = None) -> None:
        self._keys = tuple(keys)
        self._file = file
        self._version = _version(file)

    @classmethod
    def of(cls, key: str | None, file: Path | None) -> "KeyRing":
        """The keys of *file* if there is one, else the one *key*, else none; raises ConfigError."""
        if file is None:
            return cls(() if key is None else (api_key(key, "key-1"),))
        ring = cls((), file)  # looks at the version first: what is written while we read is read again
        ring._keys = read_keys(file)
        return ring

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for a key."""
        return not self._keys

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one name to be fair between."""
        return len({key.name for key in self._keys}) > 1

    def name_of(self, authorization: str) -> str | None:
        """Whose key the header *authorization* (`Bearer KEY`) carries, or None for nobody's.

        Takes as long for a key that is nearly right as for one that is not, wherever in the file it stands.
        """
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.encode("utf-8", "surrogateescape"))
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found if scheme.lower() == "bearer" else None

    def reload_if_changed(self) -> None:
        """Take over what the file says now; where it says nothing usable, the keys stay as they are."""
        if self._file is None or (version := _version(self._file)) == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._file)
        except ConfigError as error:
            log.error("event=api_keys_kept reason=%r", str(error))
        else:
            log.info("event=api_keys keys=%d", len(self._keys))

    async def keep_up(self) -> None:
        """Look at the file again and again, for ever."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload_if_changed()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; a Secret's mount is a link that is pointed elsewhere."""
    try:
        return None if file is None else ((s := file.stat()).st_mtime_ns, s.st_ino, s.st_size)
    except OSError:
        return None
