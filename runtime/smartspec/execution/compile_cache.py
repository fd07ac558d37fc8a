"""Where inductor keeps what it compiles: code that is loaded into the process, so nobody else may have put it there,
and code for one kind of machine, so no other kind may find it."""

import atexit
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from smartspec.config import ConfigError
from smartspec.native import processor

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_TELLING = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
"""What tells processors apart, by Linux's names: on x86-64, then on ARM."""


def settle(environment: MutableMapping[str, str]) -> None:
    """Name the folder in *environment*: the one that is named there already, or one for machines like this below the
    user's cache (`XDG_CACHE_HOME`), or a temporary one of this process alone.

    Only before transformers is loaded: torch, asked for the folder meanwhile, would settle on one in `/tmp` whose name
    anybody can guess, and fill. Raises ConfigError where the named one, or none at all, can be written to.
    """
    if named := environment.get(VARIABLE):
        if problem := _problem(Path(named)):
            raise ConfigError(f"{VARIABLE}: {named} cannot be written to: {problem}")
        return
    users = _users_cache(environment)
    if users is not None and _problem(folder := users / "smartspec" / "compiled" / kind_of_machine()) is None:
        environment[VARIABLE] = str(folder)
        return
    try:
        environment[VARIABLE] = tempfile.mkdtemp(prefix="smartspec-compiled-")
    except OSError as error:
        raise ConfigError(f"{VARIABLE} must name a folder for compiled code: {error}") from error
    atexit.register(shutil.rmtree, environment[VARIABLE], ignore_errors=True)


def kind_of_machine() -> str:
    """A name that machines share if one can run what the other has compiled: inductor asks the compiler for everything
    that the processor at hand can do, and tells its own files apart by much, but not by that."""
    python, torch = sys.implementation.cache_tag, version("torch")
    told = (processor().get(name, "") for name in _TELLING)
    kind = "\n".join((python, torch, platform.machine(), platform.processor(), *told))
    return f"{python}-torch-{torch}-{sha256(kind.encode()).hexdigest()[:12]}"


def _users_cache(environment: Mapping[str, str]) -> Path | None:
    if named := environment.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # the environment names no home, and the system knows none of this user
        return None


def _problem(folder: Path) -> str | None:
    """Why *folder* cannot be written to, if it cannot; it is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
