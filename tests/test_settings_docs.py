"""The settings page is the settings: every variable, its default and its meaning, and nothing else."""

from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from pipelines.settings import PipelineSettings
from service.settings import ServiceSettings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
PARTS: tuple[tuple[str, type[BaseSettings]], ...] = (("pipelines", PipelineSettings), ("service", ServiceSettings))


def default_of(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default in ("", None, ()):
        return ""
    default = str(field.default)
    return f"`{default.lower() if isinstance(field.default, bool) else default}`"


def expected_rows() -> list[str]:
    """Return the table's rows as the code has them; a variable both parts read stands once."""
    readers: dict[str, list[str]] = {}
    fields: dict[str, FieldInfo] = {}
    for part, settings in PARTS:
        for name, field in settings.model_fields.items():
            readers.setdefault(name, []).append(part)
            fields.setdefault(name, field)
    return [
        f"| `HINDCAST_{name.upper()}` | {', '.join(readers[name])} | {default_of(field)} | {field.description} |"
        for name, field in fields.items()
    ]


def test_the_page_lists_every_setting_as_the_code_has_it() -> None:
    found = [line for line in PAGE.read_text().splitlines() if line.startswith("| `HINDCAST_")]
    expected = expected_rows()
    assert sorted(found) == sorted(expected), "expected:\n" + "\n".join(expected)


def test_a_setting_both_parts_read_means_the_same_to_both() -> None:
    shared = PipelineSettings.model_fields.keys() & ServiceSettings.model_fields.keys()
    assert shared == {"home", "registry_uri", "ledger_url"}
    assert PipelineSettings.model_fields["home"].default == ServiceSettings.model_fields["home"].default
