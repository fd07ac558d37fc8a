"""`smartspec` as a command: what it says and how it exits when told nonsense."""

import socket
from pathlib import Path

import pytest

import smartspec
from smartspec.__main__ import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`smartspec --version` is the package's."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"smartspec {smartspec.__version__}\n"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that says what is wrong."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("smartspec: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_setting_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """ConfigError, from flags or from the server's own checks, is no traceback."""
    assert main(["serve", "x", "--threads", "0"]) == 2
    assert said(capsys) == "smartspec: threads must be at least 1, got 0"
    assert main(["serve", "x", "--port", "0", "--admin-port", "0", "--admin-host", "0.0.0.0"]) == 2
    assert "admin_host" in said(capsys)


def test_bad_policy_file_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file and the field are in the line."""
    (tmp_path / "policy.json").write_text('{"policy": "best"}')
    assert main(["serve", "x", "--policy-file", str(tmp_path / "policy.json")]) == 2
    assert "$.policy" in said(capsys)


def test_a_trace_that_cannot_be_written_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anything is loaded."""
    assert main(["serve", "x", "--trace", str(tmp_path / "no" / "trace.jsonl")]) == 2
    assert said(capsys).endswith("no/trace.jsonl: No such file or directory")


def test_port_in_use_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """The address is in the line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "x", "--port", str(port), "--admin-port", "0"]) == 1
    assert str(port) in said(capsys)
