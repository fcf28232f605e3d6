"""docker-compose.yml and the Dockerfile: what can be held without a Docker engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from pipelines.settings import PipelineSettings
from service.settings import ServiceSettings
from tests.e2e.compose import COMPOSE, load_services

ROOT = COMPOSE.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
PASSWORD = {"HINDCAST_POSTGRES_PASSWORD": "a password"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Every service, variables filled in."""
    return load_services(PASSWORD)


def test_the_stack_has_its_five_services(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "mlflow", "service", "service-gpu", "worker"}


def test_a_missing_password_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(KeyError, match=r"HINDCAST_POSTGRES_PASSWORD: choose a password .* \.env"):
        load_services({})


def test_the_password_is_in_no_command_and_no_address(services: dict[str, Any]) -> None:
    given = {
        name: [k for k, v in s.get("environment", {}).items() if "a password" in v] for name, s in services.items()
    }
    assert given == {
        "postgres": ["POSTGRES_PASSWORD"],
        "mlflow": ["PGPASSWORD"],
        "worker": ["PGPASSWORD"],
        "service": ["PGPASSWORD"],
        "service-gpu": ["PGPASSWORD"],
    }
    assert not any("a password" in part for s in services.values() for part in s.get("command", []))


def test_every_port_is_published_on_this_machine_only(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {
        "mlflow": ["127.0.0.1:5000:5000"],
        "service": ["127.0.0.1:8000:8000"],
        "service-gpu": ["127.0.0.1:8001:8000"],
    }


def test_everything_waits_for_the_health_of_what_it_needs(services: dict[str, Any]) -> None:
    needs = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needs == {
        "postgres": set(),
        "mlflow": {"postgres"},
        "service": {"postgres", "mlflow"},
        "service-gpu": {"postgres", "mlflow"},
        "worker": {"postgres", "mlflow"},
    }
    for service in services.values():
        assert all(need == {"condition": "service_healthy"} for need in service.get("depends_on", {}).values())
        assert service["healthcheck"]["test"]


def test_the_gpu_service_is_the_service_with_a_gpu(services: dict[str, Any]) -> None:
    plain, gpu = services["service"], services["service-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert gpu["environment"] == {**plain["environment"], "HINDCAST_DEVICE": "cuda"}
    for same in ("command", "depends_on", "healthcheck", "cap_drop", "security_opt"):
        assert gpu[same] == plain[same]


def test_every_setting_is_one_that_is_read(services: dict[str, Any]) -> None:
    known: dict[str, type[BaseSettings]] = {
        "service": ServiceSettings,
        "service-gpu": ServiceSettings,
        "worker": PipelineSettings,
    }
    for name, settings in known.items():
        given = {key for key in services[name]["environment"] if key.startswith("HINDCAST_")}
        assert given <= {f"HINDCAST_{field.upper()}" for field in settings.model_fields}, name


def test_what_is_kept_lies_in_named_volumes(services: dict[str, Any]) -> None:
    declared = set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    mounted = {mount.split(":")[0] for s in services.values() for mount in s.get("volumes", [])}
    assert {name for name in mounted if not name.startswith(".")} == declared
    assert declared == {"postgres", "mlflow", "service", "service-gpu", "keys", "worker"}


def test_both_services_ask_for_the_same_keys_which_outlive_them(services: dict[str, Any]) -> None:
    for name in ("service", "service-gpu"):
        file = Path(services[name]["environment"]["HINDCAST_KEYS_FILE"])
        assert f"keys:{file.parent}" in services[name]["volumes"]
        assert str(file.parent) in DOCKERFILE, "a volume takes over the owner of the folder it is mounted on"


def test_every_image_is_a_stage_that_ends_without_rights(services: dict[str, Any]) -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["dockerfile"] == "docker/Dockerfile"
            assert stages[service["build"]["target"]].rstrip().endswith("USER hindcast"), name


def test_the_builder_is_sent_what_the_dockerfile_copies_and_nothing_else() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {part for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M) for part in line.split()}
    assert sent == copied
    assert all((ROOT / path).exists() for path in copied)


def test_no_host_is_named() -> None:
    for path in (COMPOSE, ROOT / "docker/Dockerfile"):
        named = set(re.findall(r"https?://([\w.-]+)", path.read_text()))
        assert named <= {"mlflow", "127.0.0.1"}, path


def test_the_operations_page_lists_every_variable_of_the_file() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    documented = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*)`)? ?\|", page, re.M)
    used = re.findall(r"\$\{(\w+):(?:-([^}]*)|\?)", COMPOSE.read_text())
    assert set(documented) == set(used)
