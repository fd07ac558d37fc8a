"""API keys: read from a file, taken over when it changes, compared without telling how near one came, never shown."""

import logging
from pathlib import Path

import pytest

from smartspec.config import ConfigError
from smartspec.server.keys import ApiKey, KeyRing, api_key, read_keys


def test_a_line_is_a_key_and_perhaps_a_name(tmp_path: Path) -> None:
    """Comments and empty lines are none; a key without a name is called after its line."""
    (tmp_path / "keys").write_text("# ours\nsesame alice\n\n  open\tbob@example \nthird\n")
    keys = read_keys(tmp_path / "keys")
    assert [key.name for key in keys] == ["alice", "bob@example", "key-5"]
    ring = KeyRing.of(None, tmp_path / "keys")
    assert [ring.name_of(f"Bearer {key}") for key in ("sesame", "open", "third")] == ["alice", "bob@example", "key-5"]
    assert ring.is_shared


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "sesame", "Basic sesame", "Bearer sesam", "Bearer sesame ",
                                   "Bearer s\udce9same", "Bearer \x00"])  # fmt: skip
def test_what_is_no_key_is_nobodys(given: str) -> None:
    """Near misses, other schemes, and bytes that are no text."""
    assert KeyRing([api_key("sesame", "alice")]).name_of(given) is None


def test_every_key_is_compared_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time it takes tells neither whether a key was nearly right nor where in the file the right one stands."""
    import hmac

    compared: list[bytes] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(a), real(a, b))[1])
    ring = KeyRing([api_key(f"key{i}", str(i)) for i in range(5)])
    for given in ("key0", "key4", "kez", "x" * 5000):
        compared.clear()
        ring.name_of(f"Bearer {given}")
        assert len(compared) == 5
        assert all(len(digest) == 32 for digest in compared)


@pytest.mark.parametrize(
    "text", ["", "k k\n" * 1001, "# nothing\n", "sesame3 b c\n", "schl\u00fcssel\n", "sesame4 na/me\n", "k" * 513]
)
def test_an_unusable_file_is_refused_without_repeating_it(tmp_path: Path, text: str) -> None:
    """It is named; what stands in it is not."""
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="api_key") as refusal:
        read_keys(tmp_path / "keys")
    assert not any(word in str(refusal.value) for word in text.split() if len(word) > 5 and word != "nothing")


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a key that was withdrawn in that moment would work for good."""
    file = tmp_path / "keys"
    file.write_text("old\n")

    def read_and_lose(path: Path) -> tuple[ApiKey, ...]:
        keys = read_keys(path)
        path.write_text("newer\n")
        return keys

    monkeypatch.setattr("smartspec.server.keys.read_keys", read_and_lose)
    ring = KeyRing.of(None, file)
    monkeypatch.undo()
    ring.reload_if_changed()
    assert (ring.name_of("Bearer old"), ring.name_of("Bearer newer")) == (None, "key-1")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Not taken for the wish to be open."""
    with pytest.raises(ConfigError, match="api_key_file"):
        KeyRing.of(None, tmp_path / "none")


def test_a_changed_file_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New keys work and old ones do not, also when a link is pointed elsewhere, as a Secret's mount does; a broken file
    changes nothing, and the log never has a key."""
    file = tmp_path / "keys"
    (tmp_path / "one").write_text("first alice\n")
    (tmp_path / "two").write_text("secnd alice\n")
    file.symlink_to(tmp_path / "one")
    ring = KeyRing.of(None, file)
    with caplog.at_level(logging.INFO):
        ring.reload_if_changed()
        assert not caplog.records
        (tmp_path / "link").symlink_to(tmp_path / "two")
        (tmp_path / "link").replace(file)
        ring.reload_if_changed()
        assert (ring.name_of("Bearer first"), ring.name_of("Bearer secnd")) == (None, "alice")
        (tmp_path / "two").write_text("brokenkey with three words\n")
        ring.reload_if_changed()
        assert ring.name_of("Bearer secnd") == "alice"
        file.unlink()
        ring.reload_if_changed()
        assert ring.name_of("Bearer secnd") == "alice"
    assert "api_keys_kept" in caplog.text
    assert not any(key in caplog.text for key in ("first", "secnd", "brokenkey"))


def test_no_keys_is_an_open_door() -> None:
    """Which only the absence of any setting opens."""
    assert KeyRing.of(None, None).is_open
    assert not KeyRing.of("one", None).is_open
    assert not KeyRing.of("one", None).is_shared
