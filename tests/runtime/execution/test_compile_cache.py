"""Compiled code is kept where nobody else writes, and where no other kind of machine looks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smartspec.config import ConfigError
from smartspec.execution import compile_cache
from smartspec.execution.compile_cache import VARIABLE, kind_of_machine, settle


def test_transformers_finds_the_folder_settled(tmp_path: Path) -> None:
    """It makes torch ask for the folder as it is imported: too late for anybody who would choose one after that."""
    program = f"import os, smartspec.execution.loader; print(os.environ[{VARIABLE!r}])"
    clean = {k: v for k, v in os.environ.items() if k != VARIABLE} | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=clean, text=True, capture_output=True)
    assert done.stdout.split() == [str(tmp_path / "smartspec" / "compiled" / kind_of_machine())], done.stderr


def test_another_kind_of_machine_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processor as of torch: what one compiled, the other might not be able to run, or compute wrongly."""
    kinds = {kind_of_machine()}
    monkeypatch.setattr(compile_cache, "processor", lambda: {"model name": "a processor", "flags": "sse2"})
    kinds.add(kind_of_machine())
    monkeypatch.setattr(compile_cache, "version", lambda _: "2.99")
    kinds.add(kind_of_machine())
    assert len(kinds) == 3


def test_without_a_users_cache_it_is_the_process_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a common folder that somebody can guess is a name that somebody can fill."""
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654)  # of nobody
    (tmp_path / "file").write_text("")
    folders = set()
    for users in ({}, {}, {"XDG_CACHE_HOME": str(tmp_path / "file")}):
        environment = dict(users)
        settle(environment)
        folders.add(Path(environment[VARIABLE]))
    assert len(folders) == 3
    assert {(folder.parent, folder.stat().st_mode & 0o777) for folder in folders} == {(tmp_path, 0o700)}


def test_a_folder_that_is_named_is_used_or_refused(tmp_path: Path) -> None:
    """By its variable: torch's own complaint names neither."""
    environment = {VARIABLE: str(tmp_path / "mine")}
    settle(environment)
    assert environment == {VARIABLE: str(tmp_path / "mine")}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"{VARIABLE}: .*/file cannot be written to: File exists"):
        settle({VARIABLE: str(tmp_path / "file")})


def test_nowhere_to_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable that helps."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=f"{VARIABLE} must name a folder for compiled code"):
        settle({"XDG_CACHE_HOME": str(tmp_path / "file")})
