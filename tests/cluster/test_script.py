"""The cluster script where it cannot do its work, and what it tells a build of this machine's pip."""

import os
import subprocess
from pathlib import Path

import pytest

from clusters import NOT_HERE, SCRIPT
from pip_configuration import merged, named_paths


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_is_told_so_in_one_line() -> None:
    """Not being root ends with the status for skipping, and a line that says what is missing."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*nobody, "test", "-x", SCRIPT], check=False).returncode != 0:
        pytest.skip("nobody else can read this checkout")
    home = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [*nobody, SCRIPT, "check", "--node"], env=home, check=False, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == NOT_HERE
    (line,) = done.stderr.splitlines()
    assert "lacks root" in line


def test_the_environment_goes_over_the_files(tmp_path: Path) -> None:
    """As in pip itself: later files over earlier ones, variables over files; only what says where packages are."""
    (tmp_path / "a").write_text("[global]\nindex-url = https://a\ntimeout = 3\n[install]\nfind-links = /x\n  /y\n")
    (tmp_path / "b").write_text("[global]\nindex-url = https://b\ntarget = /lib\n")
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "absent"]
    found = merged(files, {"PIP_TRUSTED_HOST": "b", "PIP_DEFAULT_TIMEOUT": "9", "PIP_USER": "1"})
    assert found == {
        "index-url": "https://b", "find-links": "/x\n/y", "trusted-host": "b", "timeout": "9",
    }  # fmt: skip


def test_local_folders_are_lent_with_their_index(tmp_path: Path) -> None:
    """A folder of wheels as it is, a local index with the files beside it, what does not exist not at all."""
    for name in ("wheels", "index/simple"):
        (tmp_path / name).mkdir(parents=True)
    options = {"find-links": f"{tmp_path}/wheels {tmp_path}/absent", "index-url": f"file://{tmp_path}/index/simple"}
    assert named_paths(options) == [tmp_path / "index", tmp_path / "wheels"]
