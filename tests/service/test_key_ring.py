"""The keys in memory follow their file, and outlive it."""

import hmac
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forecasting.errors import InputError
from service import key_ring
from service.key_ring import KeyRing
from service.key_store import ApiKey, create_key, load_last_used, revoke_key
from tests.service.conftest import wait_until

NOW = datetime.now(UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def opened(path: Path, *, always: bool = False) -> KeyRing:
    ring = KeyRing(path, 1000.0, always=always)
    ring.open()
    return ring


def make(path: Path, name: str = "ops", **more: object) -> tuple[ApiKey, bytes]:
    made, key = create_key(path, name, ["read"], NOW, **more)
    return made, key.encode()


def test_a_key_is_recognised_by_its_secret_and_not_by_its_id(path: Path) -> None:
    made, key = make(path)
    _, other = make(path)
    ring = opened(path)
    holder = ring.recognise(key)
    assert holder is not None
    assert holder.key == made
    assert ring.recognise(key[:16] + other[16:]) is None
    for wrong in (b"", b"hc_", key[:-1], key + b"0", key.upper(), b"\xff" * 80, made.digest.encode()):
        assert ring.recognise(wrong) is None


def test_known_and_unknown_ids_are_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = make(path)
    ring = opened(path)
    compared: list[tuple[bytes, bytes]] = []
    constant_time = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return constant_time(one, other)

    monkeypatch.setattr(key_ring.hmac, "compare_digest", compare)
    for presented in (key, key[:-1] + b"x", b"hc_000000000000_" + key[16:]):
        ring.recognise(presented)
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 3


def test_keys_are_asked_for_as_soon_as_there_is_one_and_from_then_on(path: Path) -> None:
    ring = opened(path)
    assert not ring.enforced
    _, key = make(path)
    ring.look()
    assert ring.enforced
    assert ring.recognise(key) is not None
    path.write_text('{"format_version": 1, "keys": []}')
    ring.look()
    assert ring.enforced, "emptying the file must not open the door"
    assert ring.recognise(key) is None


def test_a_key_that_is_revoked_ends(path: Path) -> None:
    made, key = make(path)
    ring = opened(path)
    holder = ring.recognise(key)
    assert holder is not None
    assert not ring.ended(holder)
    revoke_key(path, made.id, NOW)
    ring.look()
    again = ring.recognise(key)
    assert again is not None
    assert "was revoked" in str(again.end())
    assert ring.ended(holder)


def test_a_key_expires_without_a_look_at_the_file(path: Path) -> None:
    _, key = make(path, expires=datetime.now(UTC) + timedelta(seconds=0.5))
    holder = opened(path).recognise(key)
    assert holder is not None
    assert holder.end() is None
    time.sleep(0.6)
    assert "expired at" in str(holder.end())


@pytest.mark.parametrize("damage", ["write", "remove", "open"])
def test_a_broken_file_keeps_the_last_good_keys_and_says_so(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = make(path)
    ring = opened(path)
    good = path.read_bytes()
    {"write": lambda: path.write_text("{"), "remove": path.unlink, "open": lambda: path.chmod(0o666)}[damage]()
    for _ in range(3):
        ring.look()
    assert ring.recognise(key) is not None
    assert ring.trouble is not None
    assert ring.trouble.attempts == 3
    assert str(path) not in ring.trouble.detail, "readiness is open to all: it names no paths"
    assert [r.levelno for r in caplog.records if "stay in force" in r.message] == [logging.ERROR]
    path.write_bytes(good)
    path.chmod(0o600)
    ring.look()
    assert ring.trouble is None


def test_a_file_that_is_broken_from_the_start_is_refused(path: Path) -> None:
    path.write_text("{")
    with pytest.raises(InputError, match="is not a file of keys"):
        opened(path)


def test_a_file_that_is_not_changed_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path)
    ring = opened(path)
    monkeypatch.setattr(key_ring, "load_keys", lambda _: pytest.fail("read again"))
    ring.look()


def test_other_keys_keep_what_they_have_used_when_the_file_changes(path: Path) -> None:
    _, key = make(path)
    ring = opened(path)
    holder = ring.recognise(key)
    make(path, "other")
    ring.look()
    assert ring.recognise(key) is holder


def test_it_follows_by_itself_and_writes_down_which_keys_were_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_SECONDS", 0.01)
    ring = opened(path)
    ring.start()
    made, key = make(path)
    wait_until(lambda: ring.recognise(key) is not None)
    holder = ring.recognise(key)
    assert holder is not None
    holder.used = True
    wait_until(lambda: made.id in load_last_used(path))
    first = load_last_used(path)[made.id]
    holder.used = True
    time.sleep(0.05)
    assert load_last_used(path)[made.id] == first, "it is written once an hour, not at every use"
    ring.stop()
    assert load_last_used(path)[made.id] > first


def test_it_follows_on_after_an_error_nobody_foresaw(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_ring, "LOOK_SECONDS", 0.01)
    ring = opened(path)
    with monkeypatch.context() as broken:
        broken.setattr(key_ring, "load_keys", lambda _: [][1])
        _, key = make(path)
        ring.start()
        wait_until(lambda: "the keys could not be looked at" in caplog.text)
    wait_until(lambda: ring.recognise(key) is not None)
    ring.stop()


def test_a_folder_that_cannot_be_written_stops_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, used: object) -> None:
        raise PermissionError(13, "Permission denied")

    _, key = make(path)
    ring = opened(path)
    monkeypatch.setattr(key_ring, "save_last_used", fail)
    holder = ring.recognise(key)
    assert holder is not None
    holder.used = True
    ring.start()
    ring.stop()
    assert ring.recognise(key) is holder
