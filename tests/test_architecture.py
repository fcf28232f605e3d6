"""The house: imports run one way, each outside library has one room, and there is no cycle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("forecasting", "training", "ledger", "pipelines", "service")

MAY_IMPORT = {
    "forecasting": set(),
    "training": {"forecasting"},
    "ledger": {"forecasting"},
    "pipelines": {"forecasting", "training", "ledger"},
    "service": {"forecasting", "ledger"},
}

ROOMS = {
    "alembic": {"ledger/database.py", "ledger/migrations/"},
    "arch": {"training/sources/samples.py", "training/confidence_set.py", "training/garch.py"},
    "croniter": {"training/job.py", "training/timetable.py"},
    "dbos": {"pipelines/schedule.py"},
    "exchange_calendars": {"forecasting/calendar.py"},
    "fastapi": {"service/"},
    "fastapi_offline": {"service/app.py"},
    "holidays": {"forecasting/calendar_features.py"},
    "httpx": {"pipelines/demo.py"},
    "joblib": {"pipelines/fanout.py"},
    "matplotlib": {"training/density_figures.py", "training/figures.py"},
    "mlflow": {"forecasting/mlflow_registry.py", "training/tracking.py"},
    "opentelemetry": {"service/tracing.py"},
    "optuna": {"training/search.py", "pipelines/search.py"},
    "plotly": {"training/density_figures.py", "training/figures.py"},
    "prometheus_client": {"service/telemetry.py", "service/streams/telemetry.py"},
    "ray": {"pipelines/fanout.py"},
    "rich": {"pipelines/console.py"},
    "safetensors": {"forecasting/artifact.py"},
    "scipy": {
        "forecasting/fallback.py",
        "forecasting/networks/outputs.py",
        "training/density_figures.py",
        "training/garch.py",
        "training/har.py",
        "training/risk.py",
        "training/significance.py",
        "training/skewed_t.py",
    },
    "pandera": {"ledger/rules.py"},
    "paho": {"pipelines/bridge.py"},
    "sqlalchemy": {"ledger/", "training/sources/sql.py"},
    "starlette": {"service/"},
    "statsmodels": {"training/sources/samples.py"},
    "typer": {"pipelines/cli.py"},
    "uvicorn": {"service/__main__.py", "service/connections.py"},
    "zstandard": {"service/decompression.py"},
    "yfinance": {"training/sources/yahoo.py"},
}

FORBIDDEN_NAMES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


MAY_HAND_OVER = {"pipelines/fanout.py": {"joblib"}}
"""Processes of ours hand tasks and results to one another; nothing from outside is unpickled there."""


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module a file imports, and whether it does so when it is itself imported."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_modules_to_look_at() -> None:
    assert len(modules()) > 40


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_imports_run_one_way(path: Path) -> None:
    package = relative(path).split("/")[0]
    siblings = {name.split(".")[0] for name, _ in imports_of(path)} & set(PACKAGES) - {package}
    assert siblings <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_each_library_stays_in_its_room(path: Path) -> None:
    where = relative(path)
    for library in {name.split(".")[0] for name, _ in imports_of(path)} & ROOMS.keys():
        assert any(where == room or (room.endswith("/") and where.startswith(room)) for room in ROOMS[library]), (
            f"{where} imports {library}, whose room is {sorted(ROOMS[library])}"
        )


def test_nobody_imports_what_runs_code_from_data() -> None:
    for path in modules():
        allowed = MAY_HAND_OVER.get(relative(path), set())
        assert not {name.split(".")[0] for name, _ in imports_of(path)} & FORBIDDEN_NAMES - allowed, relative(path)
        assert "torch.load" not in path.read_text(), relative(path)


def test_imports_have_no_cycle() -> None:
    names = {
        relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in modules()
    }
    graph = {
        name: {found for found, at_import in imports_of(path) if at_import and found in names and found != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_service_loads_neither_mlflow_nor_the_sdk_of_opentelemetry_when_it_is_imported() -> None:
    """MLflow takes seconds to import; the service does it later, off the request path. Traces are for who asks."""
    import subprocess
    import sys

    code = "import sys, service.app; print(*({'mlflow', 'training', 'opentelemetry.sdk'} & sys.modules.keys()))"
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == []


def listed_in_the_house() -> Iterator[str]:
    """Yield every module that the README's listing of the house names, by its path."""
    listing = (ROOT / "README.md").read_text().partition("## The house")[2].split("```")[1]
    package = ""
    for line in filter(None, listing.splitlines()):
        name, *rest = line.split()
        if not line.startswith(" "):
            package = name
        elif name.endswith("/"):
            yield from (f"{package}{name}{inside}" for inside in rest if inside.endswith(".py"))
        else:
            yield f"{package}{name}"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    listed = list(listed_in_the_house())
    assert len(listed) == len(set(listed)), "a module is named twice"
    there = {
        relative(path)
        for package in (*PACKAGES, "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert set(listed) == there
