"""The file of keys: hashes alone, changed whole, and read strictly."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forecasting.errors import InputError
from service import key_store
from service.key_store import KEY_PATTERN, create_key, load_keys, load_last_used, revoke_key, save_last_used

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_has_256_bits_of_secret_of_which_only_a_hash_is_kept(path: Path) -> None:
    made, key = create_key(path, "ops", ["admin"], NOW)
    assert KEY_PATTERN.fullmatch(key)
    assert key.startswith(f"hc_{made.id}_")
    secret = key.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    assert secret not in path.read_text()
    assert load_keys(path)[0].digest == hashlib.sha256(key.encode()).hexdigest()


def test_the_file_is_its_owners_alone(path: Path) -> None:
    create_key(path, "ops", ["admin"], NOW)
    path.chmod(0o644)
    create_key(path, "ops", ["admin"], NOW)
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_keys_of_a_name_may_live_and_a_third_is_refused_with_the_reason(path: Path) -> None:
    first, _ = create_key(path, "ops", ["admin"], NOW)
    second, _ = create_key(path, "ops", ["admin"], NOW)
    with pytest.raises(InputError, match=f"two live keys already, {first.id} and {second.id}.*revoke the one"):
        create_key(path, "ops", ["admin"], NOW)
    create_key(path, "other", ["read"], NOW)
    revoke_key(path, first.id, NOW)
    create_key(path, "ops", ["admin"], NOW)


def test_a_key_that_has_expired_makes_room_for_another(path: Path) -> None:
    for _ in range(2):
        create_key(path, "ops", ["read"], NOW, expires=NOW + timedelta(days=1))
    create_key(path, "ops", ["read"], NOW + timedelta(days=1))


def test_a_revoked_key_stays_on_record_as_it_was_revoked_first(path: Path) -> None:
    made, _ = create_key(path, "ops", ["read"], NOW)
    revoke_key(path, made.id, NOW)
    again = revoke_key(path, made.id, NOW + timedelta(days=1))
    assert again is not None
    assert (again.revoked, again.end(NOW)) == (NOW, "was revoked at 2026-03-01 12:00 UTC")
    assert revoke_key(path, "0" * 12, NOW) is None


def test_keys_made_at_one_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: create_key(path, f"k{i}", ["read"], NOW)[0], range(16)))
    assert {key.id for key in load_keys(path)} == {key.id for key in made}


def test_a_write_that_fails_leaves_the_keys_as_they_were(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "ops", ["admin"], NOW)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_store.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        create_key(path, "ops", ["admin"], NOW)
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


def spoil(content: dict[str, object], **changes: object) -> str:
    (key,) = content["keys"]
    return json.dumps({**content, "keys": [{**key, **changes}]})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: "", "Invalid JSON"),
        (lambda c: json.dumps(c)[:-9], "Invalid JSON"),
        (lambda _: "[" * 100_000, "Invalid JSON"),
        (lambda c: json.dumps({**c, "format_version": 2}), "format_version"),
        (lambda c: json.dumps({**c, "more": 1}), "more"),
        (lambda c: json.dumps({**c, "keys": c["keys"] * 2}), "two keys have one id"),
        (lambda c: spoil(c, scopes=["root"]), "keys.0.scopes.0"),
        (lambda c: spoil(c, scopes=[]), "keys.0.scopes"),
        (lambda c: spoil(c, digest="00"), "keys.0.digest"),
        (lambda c: spoil(c, created="2026-03-01T00:00:00"), "keys.0.created"),
        (lambda c: spoil(c, rate=-1), "keys.0.rate"),
        (lambda c: spoil(c, secret="x"), "keys.0.secret"),
    ],
)
def test_a_file_that_is_not_one_of_keys_is_refused_and_nothing_of_it_repeated(
    path: Path, damage: Callable[[dict[str, object]], str], reason: str
) -> None:
    made, _ = create_key(path, "ops", ["admin"], NOW)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(InputError, match="is not a file of keys") as refused:
        load_keys(path)
    assert reason in str(refused.value)
    assert made.digest not in str(refused.value)


def test_a_file_that_is_too_long_is_not_read_to_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "ops", ["admin"], NOW)
    monkeypatch.setattr(key_store, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="longer than 100 bytes"):
        load_keys(path)


def test_a_file_that_everybody_may_write_is_not_believed(path: Path) -> None:
    create_key(path, "ops", ["admin"], NOW)
    path.chmod(0o666)
    with pytest.raises(InputError, match="chmod 600"):
        load_keys(path)


def test_there_are_no_keys_where_there_is_no_file(path: Path) -> None:
    assert load_keys(path) == ()


def test_when_keys_were_used_is_kept_beside_what_other_processes_know(path: Path) -> None:
    first, second, later = "0" * 12, "1" * 12, NOW + timedelta(hours=1)
    save_last_used(path, {first: later})
    save_last_used(path, {first: NOW, second: NOW})
    assert load_last_used(path) == {first: later, second: NOW}
    path.with_name("keys.used.json").write_text("{")
    assert load_last_used(path) == {}
