"""Recorded arrivals are read from whoever wrote them down, and what is none is refused by name."""

from pathlib import Path

import msgspec
import pytest

from smartspec.config import ConfigError
from smartspec.loadgen.recorded import Arrival, read
from smartspec.policy.load import LoadReport, RequestShape
from smartspec.policy.recording import FORMAT, Loaded, Start
from smartspec.policy.settings import PolicySettings


def write(tmp_path: Path, text: str) -> Path:
    """A file with *text*."""
    (tmp_path / "trace").write_text(text)
    return tmp_path / "trace"


def test_json_lines_have_seconds_or_milliseconds(tmp_path: Path) -> None:
    """`arrival` is seconds, Mooncake's `timestamp` milliseconds; they are put in order, the first at 0."""
    file = write(
        tmp_path, '{"arrival": 12.5, "prompt": "b\u2028"}\n\n{"arrival": 12, "output_length": 7, "other": 1}\n'
    )
    assert read(file) == (Arrival(0.0, output_tokens=7), Arrival(0.5, "b\u2028"))
    file = write(tmp_path, '{"timestamp": 3000, "input_length": 9, "output_length": 2, "hash_ids": [1]}\n')
    assert read(file) == (Arrival(0.0, None, 9, 2),)


def test_azure_s_csv(tmp_path: Path) -> None:
    """The columns of Azure's inference traces, their seven digits of a second included."""
    rows = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    first, second = read(write(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"))
    assert first == Arrival(0.0, None, 374, 44)
    assert second == Arrival(pytest.approx(4.314579), None, 396, 109)


def test_our_own_recording(tmp_path: Path) -> None:
    """Load reports count requests; those between two reports are spread over the time between them."""
    shape = RequestShape(mean_prompt_tokens=20.4, mean_requested_tokens=64.0)

    def loaded(time: float, requests: int) -> Loaded:
        return Loaded(time, LoadReport("m", "0", "ready", requests_total=requests, shape=shape))

    events = [Start(FORMAT, "0", 0.0, "k", PolicySettings()), loaded(2, 5), loaded(4, 7), loaded(6, 7), loaded(8, 8)]
    file = write(tmp_path, "\n".join(msgspec.json.encode(event).decode() for event in events) + "\n")
    assert read(file) == tuple(Arrival(time, None, 20, 64) for time in (0.0, 1.0, 4.5))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no request"),
        ("{", "truncated"),
        ('{"prompt": "a"}', "arrival"),
        ('{"arrival": "soon"}', "arrival"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "generatedtokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "noon"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, word: str) -> None:
    """With the file's name and what is wrong in it."""
    with pytest.raises(ConfigError, match=rf"trace .*trace: .*{word}"):
        read(write(tmp_path, text))
