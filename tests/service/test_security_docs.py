"""docs/security.md is held to the code: promises to tests that exist, limits and scopes to what is there."""

import ast
import re
from pathlib import Path

import pytest

from service.access import ACCESS
from service.connections import LARGEST_HEAD
from service.key_store import SCOPES
from service.rate_limit import BYTES_OF_A_UNIT, SAVED_SECONDS
from service.security import LONGEST_ADDRESS, MOST_HEADERS
from service.settings import ServiceSettings

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "security.md").read_text()
PROMISES = re.findall(r"^\| (.+\.) \| `([\w./]+)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_every_line_of_the_table_is_read() -> None:
    table = PAGE.split("| promise | test |")[1].split("\n## ")[0]
    assert len(PROMISES) == table.count("\n| ") - 1 > 15


@pytest.mark.parametrize(("promise", "file", "name"), PROMISES)
def test_every_promise_has_a_test(promise: str, file: str, name: str) -> None:
    tree = ast.parse((HERE / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_scopes_are_those_there_are() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == SCOPES


def test_what_needs_write_or_admin_is_on_the_page() -> None:
    for path, methods in ACCESS.items():
        for method, needed in methods.items():
            if needed in ("write", "admin"):
                assert f"`{method} {path}`" in PAGE


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"{LONGEST_ADDRESS:,} characters" in PAGE
    assert f"| {MOST_HEADERS}, and {LARGEST_HEAD // 1024} KiB" in PAGE
    assert f"{BYTES_OF_A_UNIT // 1024} KiB of a body" in PAGE
    assert SAVED_SECONDS == 10


def test_every_setting_it_names_exists() -> None:
    named = set(re.findall(r"`HINDCAST_(\w+)`", PAGE)) | {"MAX_LENGTH", "MAX_LEVELS", "MAX_VALUES"}
    assert named <= {name.upper() for name in ServiceSettings.model_fields}
