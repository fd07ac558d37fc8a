"""The command line: every flag lands where it should, and nonsense is said in a sentence."""

import json
from pathlib import Path

import pytest

from smartspec.arguments import initial_settings, parse, runtime_config
from smartspec.config import ConfigError, RuntimeConfig, SchedulerConfig, ServerConfig, SpeculationConfig


def config_of(*argv: str | int, environment: dict[str, str] | None = None) -> RuntimeConfig:
    """What `smartspec serve TARGET` with *argv* is told."""
    return runtime_config(parse(["serve", "models/target", *map(str, argv)]), environment or {})


def test_defaults_are_the_config_s() -> None:
    """A bare `serve TARGET` means the defaults of the configuration types, spelled nowhere else."""
    config = config_of()
    assert config.model.target == "models/target"
    assert config.model.name == "target"
    assert config.scheduler == SchedulerConfig()
    assert config.speculation == SpeculationConfig()
    assert config.server == ServerConfig()


def test_every_flag_lands_in_its_place() -> None:
    """One value per flag, read back from the configuration."""
    config = config_of(
        "--draft", "d", "--dtype", "bfloat16", "--device", "cpu", "--host", "h", "--port", 1, "--admin-host", "a",
        "--admin-port", 2, "--served-name", "n", "--revision", "r", "--draft-revision", "s", "--max-model-len", 64,
        "--max-num-seqs", 3, "--max-num-batched-tokens", 99, "--max-queued-requests", 4, "--num-blocks", 5,
        "--block-size", 8, "--policy", "fixed", "--num-speculative-tokens", 6, "--verification", "coupled",
        "--no-prompt-lookup", "--threads", 2, "--drain-timeout", 7, "--lame-duck", 8, "--max-connection-age", 9,
        "--trust-remote-code", "--seed", 10, "--trace", "t.jsonl", "--trace-size", "2MiB", "--no-prefix-caching",
        "--max-queued-tokens", 11, "--request-timeout", 12, "--max-body-size", "1KiB", "--max-connections", 13,
        "--idle-timeout", 14, "--head-timeout", 15, "--body-timeout", 16, "--send-timeout", 17, "--api-key-file", "k",
        "--otlp-endpoint", "http://c:4318",
    )  # fmt: skip
    model, scheduler, speculation, server = config.model, config.scheduler, config.speculation, config.server
    assert (model.draft, model.dtype, model.device, model.name) == ("d", "bfloat16", "cpu", "n")
    assert (model.revision, model.draft_revision, model.max_model_len) == ("r", "s", 64)
    assert (model.trust_remote_code, model.seed, config.num_threads) == (True, 10, 2)
    assert not scheduler.prefix_caching
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens, scheduler.max_queued_requests) == (3, 99, 4)
    assert (scheduler.num_blocks, scheduler.block_size) == (5, 8)
    assert (speculation.policy, speculation.num_speculative_tokens) == ("fixed", 6)
    assert (speculation.verification, speculation.prompt_lookup) == ("coupled", False)
    assert (server.host, server.port, server.admin_host, server.admin_port) == ("h", 1, "a", 2)
    assert (str(config.trace.file), config.trace.max_bytes) == ("t.jsonl", 2 << 20)
    assert (server.drain_timeout_seconds, server.lame_duck_seconds, server.max_connection_age_seconds) == (7, 8, 9)
    assert (scheduler.max_queued_tokens, server.request_timeout_seconds, server.max_connections) == (11, 12, 13)
    assert (server.max_body_bytes, server.max_held_body_bytes) == (1024, 16 * 1024)
    assert (server.idle_timeout_seconds, server.head_timeout_seconds) == (14, 15)
    assert (server.body_timeout_seconds, server.send_timeout_seconds) == (16, 17)
    assert (str(server.api_key_file), server.otlp_endpoint) == ("k", "http://c:4318")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1024", 1024), ("1KiB", 1024), ("512MiB", 2**29), ("1GiB", 2**30), ("1.5Gi", 3 * 2**29), ("2GB", 2 * 10**9)],
)
def test_sizes_have_units(text: str, num_bytes: int) -> None:
    """Binary units as Kubernetes writes them, decimal ones without the i."""
    assert config_of("--kv-cache-memory", text).scheduler.kv_cache_memory_bytes == num_bytes


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--kv-cache-memory", "much"], "512MiB"),
        (["--port", "70000"], "port"),
        (["--drain-timeout", "-1"], "seconds"),
        (["--lame-duck", "nan"], "seconds"),
        (["--head-timeout", "0"], "above 0"),
        (["--policy", "best"], "best"),
        (["--num-blocks", "1", "--kv-cache-memory", "1"], "not allowed with"),
        (["--api-key", "secret"], "unrecognized"),
    ],
)
def test_flags_that_make_no_sense(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse refuses them with status 2; a key is never taken as a value, where `ps` would show it."""
    with pytest.raises(SystemExit) as ended:
        config_of(*argv)
    assert ended.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--threads", "0"], "threads"),
        (["--threads", "99999999999"], "threads"),
        (["--max-queued-tokens", "0"], "max_queued_tokens"),
        (["--max-connections", "0"], "max_connections"),
        (["--max-body-size", "0"], "max_body_size"),
        (["--max-model-len", "0"], "max_model_len"),
        (["--num-blocks", "-1"], "num_blocks"),
        (["--max-num-seqs", "0"], "max_num_seqs"),
        (["--trace-size", "1KiB"], "trace_size"),
        (["--num-speculative-tokens", "33"], "num_speculative_tokens"),
        (["--max-num-batched-tokens", "8", "--max-num-seqs", "9"], "max_num_batched_tokens"),
    ],
)
def test_values_out_of_bounds_name_the_setting(argv: list[str], word: str) -> None:
    """ConfigError, with the setting in its message."""
    with pytest.raises(ConfigError, match=word):
        config_of(*argv)


def test_keys_come_from_files_or_the_environment(tmp_path: Path) -> None:
    """A file wins over the environment; its last newline is no part of the key; keys never show in a repr."""
    (tmp_path / "key").write_text("from-file\n")
    environment = {"SMARTSPEC_API_KEY": "from-env", "SMARTSPEC_ADMIN_KEY": "admin-env"}
    config = config_of("--admin-key-file", str(tmp_path / "key"), environment=environment)
    assert (config.server.api_key, config.server.admin_key) == ("from-env", "from-file")
    assert "from-" not in repr(config)


@pytest.mark.parametrize("text", ["", "\n", "two words", "schlüssel"])
def test_unusable_keys_are_refused(tmp_path: Path, text: str) -> None:
    """An empty key is a mistake in a mount, not an open door; one no header can carry would lock everyone out."""
    (tmp_path / "key").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="admin_key"):
        config_of("--admin-key-file", str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="admin_key"):
        config_of("--admin-key-file", str(tmp_path / "missing"))


def test_policy_file_wins_over_flags(tmp_path: Path) -> None:
    """A mounted policy is the policy; where there is none, the flags are."""
    config, file = config_of("--policy", "batch", "--num-speculative-tokens", "3"), tmp_path / "policy.json"
    assert initial_settings(config, None) == initial_settings(config, file)
    assert initial_settings(config, file).policy == "batch"
    assert initial_settings(config, file).max_speculative_tokens == 3
    file.write_text(json.dumps({"generation": 5, "policy": "off"}))
    assert (initial_settings(config, file).generation, initial_settings(config, file).policy) == (5, "off")


@pytest.mark.parametrize("text", ["", "{", '{"policy": "best"}', '{"tpot": 1}'])
def test_bad_policy_file_is_named(tmp_path: Path, text: str) -> None:
    """What is wrong with it, and where it is."""
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"policy_file .*policy\.json"):
        initial_settings(config_of(), file)
