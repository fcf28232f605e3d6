"""What the service can be told, and what it refuses to be told."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.__main__ import read_settings
from service.key_store import create_key
from service.runtime import choose_device
from service.settings import ServiceSettings


def test_the_defaults_serve_the_local_registry_to_this_machine_only() -> None:
    settings = ServiceSettings()
    assert settings.host == "127.0.0.1"
    assert settings.registry_uri == f"sqlite:///{Path.cwd()}/.hindcast/mlflow.db"
    assert settings.models is None


def test_the_registry_lies_below_home_unless_said_otherwise(tmp_path: Path) -> None:
    assert ServiceSettings(home=tmp_path).registry_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert ServiceSettings(home=tmp_path, registry_uri="http://mlflow").registry_uri == "http://mlflow"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_MODELS", "co2, sp500,")
    monkeypatch.setenv("HINDCAST_PORT", "0")
    monkeypatch.setenv("HINDCAST_CORS_ORIGINS", "https://plant.example, http://localhost:3000")
    settings = ServiceSettings()
    assert (settings.models, settings.port) == (("co2", "sp500"), 0)
    assert settings.cors_origins == ("https://plant.example", "http://localhost:3000")


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_POLL_SECONDS", "7")
    assert read_settings([]).poll_seconds == 7
    assert read_settings(["--poll-seconds", "3", "--models", "a,b"]).poll_seconds == 3


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "hindcast.example"])  # noqa: S104
def test_a_host_others_can_reach_needs_keys_and_is_told_how_to_make_one(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"no API keys .* `hindcast keys create NAME` makes one"):
        ServiceSettings(host=host, home=tmp_path)
    create_key(tmp_path / "keys.json", "ops", ["admin"], datetime.now(UTC))
    assert ServiceSettings(host=host, home=tmp_path).host == host


def test_a_file_of_keys_that_is_named_is_enough_for_a_host_others_can_reach(tmp_path: Path) -> None:
    """Nobody is let in before it has a key."""
    assert not ServiceSettings(host="0.0.0.0", keys_file=tmp_path / "later.json").is_local  # noqa: S104


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_fine(host: str) -> None:
    assert ServiceSettings(host=host).host == host


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": "No Such"},
        {"port": 70000},
        {"poll_seconds": 0},
        {"max_series": 0},
        {"device": "tpu"},
        {"hots": 1},
        {"cors_origins": "plant.example"},
        {"cors_origins": "https://plant.example/"},
        {"cors_origins": "null"},
        {"key_rate": 0},
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServiceSettings(**wrong)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="no GPU"):
        choose_device("cuda")


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in ServiceSettings.model_fields.items() if not field.description] == []
