"""The command line of `smartspec-operator run`: what is wrong is said in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smartspec_operator.__main__ import main


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    """Neither in a pod nor with a kubeconfig: no traceback, status 2."""
    environment = os.environ | {"KUBECONFIG": str(tmp_path / "missing"), "HOME": str(tmp_path)}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    done = subprocess.run(
        [sys.executable, "-m", "smartspec_operator", "run"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: neither in a pod nor with a usable kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tick-seconds", "0"], "'0' is not a number of seconds above 0"),
        (["--probe-port", "99999"], "'99999' is not a port"),
        (["--namespace", "a", "--all-namespaces"], "not allowed with argument"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, and what it would take."""
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
