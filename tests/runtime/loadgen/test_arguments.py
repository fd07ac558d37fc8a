"""What `smartspec bench` is told becomes a plan, or a sentence about what is wrong."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from smartspec.arguments import parse
from smartspec.config import ConfigError
from smartspec.loadgen.arguments import BenchOptions, bench_options


def options_of(*argv: str | int, **environment: str) -> BenchOptions:
    """What `smartspec bench http://h` with *argv* is told."""
    return bench_options(parse(["bench", "http://h", *map(str, argv)]), environment)


def test_nothing_said_means_four_clients_and_64_requests() -> None:
    """The server as it is, the built-in texts over and over."""
    options = options_of()
    assert (options.plan.clients, len(options.plan), options.plan.seconds) == (4, 64, None)
    assert [mode.field for mode in options.modes] == [None]
    assert not options.compares
    assert "ignore_eos" not in options.fields
    assert len({job.prompt for job in options.plan}) == 8


@pytest.mark.parametrize("text", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1?x=y"])
def test_the_server_s_url_with_or_without_v1(text: str) -> None:
    """Both are what people have at hand; other paths stay."""
    assert str(bench_options(parse(["bench", text]), {}).base / "v1/models") == "http://h:1/v1/models"
    prefixed = bench_options(parse(["bench", "https://h/proxy/v1"]), {}).base
    assert str(prefixed / "metrics") == "https://h/proxy/metrics"


def test_a_rate_has_poisson_arrivals() -> None:
    """As many as were asked for in the time that their rate takes, or as the time has room for; a seed decides them."""
    plan = options_of("--rate", 5, "--requests", 20, "--max-tokens", 9).plan
    assert (plan.clients, len(plan.jobs)) == (None, 20)
    assert [job.due for job in plan.jobs] == sorted(job.due for job in plan.jobs)
    assert plan.jobs[0].due == 0
    assert 1 < plan.jobs[-1].due < 4
    assert {job.max_tokens for job in plan.jobs} == {9}
    assert plan == options_of("--rate", 5, "--requests", 20, "--max-tokens", 9).plan
    assert plan != options_of("--rate", 5, "--requests", 20, "--max-tokens", 9, "--seed", 1).plan
    assert len(options_of("--rate", 5, "--minutes", 0.1).plan.jobs) == 30


def test_a_trace_keeps_its_times_and_lengths(tmp_path: Path) -> None:
    """Faster when asked; a prompt of about the recorded length where only that is known."""
    (tmp_path / "t").write_text(
        '{"arrival": 0, "prompt": "mine", "output_length": 3}\n{"arrival": 4, "input_length": 50}\n{"arrival": 60}\n'
    )
    plan = options_of("--trace", tmp_path / "t", "--speed", 2, "--minutes", 0.1).plan
    assert [(job.number, job.due, job.max_tokens) for job in plan.jobs] == [(0, 0.0, 3), (1, 2.0, 64)]
    assert plan.jobs[0].prompt == "mine"
    assert len(plan.jobs[1].prompt) == 200


def test_a_plan_for_a_time_takes_no_memory_for_what_may_never_be_sent() -> None:
    """An hour of many clients has room for millions of jobs: each is made when its turn comes, with its number."""
    plan = options_of("--clients", 64, "--minutes", 60).plan
    assert (len(plan), len(plan.jobs)) == (23_040_000, 8)
    jobs = list(islice(plan, 17))
    assert [job.number for job in jobs] == list(range(17))
    assert jobs[0].prompt == jobs[8].prompt == jobs[16].prompt != jobs[1].prompt


def test_modes_are_what_the_request_field_says() -> None:
    """In the order given; answers then have all their tokens, so that modes do equal work."""
    options = options_of("--compare", "off, fixed:4,auto,auto:2")
    assert [(mode.name, mode.field) for mode in options.modes] == [
        ("off", {"mode": "off"}),
        ("fixed:4", {"mode": "fixed", "max_tokens": 4}),
        ("auto", {"mode": "auto"}),
        ("auto:2", {"mode": "auto", "max_tokens": 2}),
    ]
    assert options.fields["ignore_eos"] is True


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """The file first, then ours, then OpenAI's variable."""
    (tmp_path / "k").write_text("file\n")
    assert options_of("--api-key-file", tmp_path / "k", SMARTSPEC_API_KEY="env").api_key == "file"
    assert options_of(SMARTSPEC_API_KEY="ours", OPENAI_API_KEY="theirs").api_key == "ours"
    assert options_of(OPENAI_API_KEY="theirs").api_key == "theirs"
    assert options_of().api_key is None


def test_prompts_of_the_user(tmp_path: Path) -> None:
    """One a line, or JSON Lines with a field prompt, where a text may have lines of its own."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\nb", "file": "x"}\n{"prompt": "c"}\n')
    jobs = options_of("--prompts", tmp_path / "p.jsonl", "--requests", 3).plan
    assert [job.prompt for job in jobs] == ["a\nb", "c", "a\nb"]
    (tmp_path / "p.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match=r"prompts .*p\.jsonl.*prompt"):
        options_of("--prompts", tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--compare", "slow"], "compare"),
        (["--compare", "fixed"], "fixed:N"),
        (["--compare", "fixed:x"], "from 0 to 32"),
        (["--compare", "off,off"], "twice"),
        (["--trace", "/nowhere/t"], "trace /nowhere/t"),
        (["--json", "/nowhere/f.json"], "json /nowhere"),
        (["--rate", "0.001", "--minutes", "0.1"], "rate"),
        (["--api-key-file", "/nowhere/k"], "api_key"),
    ],
)
def test_nonsense_is_named(argv: list[str], word: str) -> None:
    """ConfigError with the setting in it."""
    with pytest.raises(ConfigError, match=word):
        options_of(*argv)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "http://h:x"])
def test_what_is_no_url_is_named(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match="url"):
        bench_options(parse(["bench", url]), {})


@pytest.mark.parametrize(
    "argv", [["--rate", "-1"], ["--clients", "0"], ["--rate", "1", "--clients", "2"], ["--requests", "x"]]
)
def test_argparse_refuses_the_rest(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, with the flag in the message."""
    with pytest.raises(SystemExit) as ended:
        options_of(*argv)
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err
