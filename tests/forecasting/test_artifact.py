"""The artefact: it comes back the same, and anything wrong with it is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from forecasting.artifact import artifact_digest, load_artifact, save_artifact
from forecasting.errors import ArtifactError
from forecasting.spec import FORMAT_VERSION, NetworkSpec
from tests.conftest import make_forecaster
from tests.forecasting.test_networks import EVERY_KIND, histories

GOLDEN = Path(__file__).parent.parent / "golden"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("network", EVERY_KIND, ids=lambda n: f"{n.kind}-{n.input_size}")
def test_a_saved_forecaster_comes_back_bit_for_bit(network: NetworkSpec, tmp_path: Path) -> None:
    forecaster = make_forecaster(network)
    save_artifact(forecaster, tmp_path / "a")
    loaded = load_artifact(tmp_path / "a")
    y_BL = histories(network.input_size)
    assert loaded.spec == forecaster.spec
    assert np.array_equal(loaded.predict(y_BL), forecaster.predict(y_BL))


def test_an_artefact_is_three_files_of_data(artifact: Path) -> None:
    assert sorted(path.name for path in artifact.iterdir()) == ["golden.json", "spec.json", "weights.safetensors"]
    assert json.loads((artifact / "spec.json").read_text())["format_version"] == FORMAT_VERSION
    assert "class" not in (artifact / "spec.json").read_text().lower()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("v*/*")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_artefacts_of_every_format_version_still_load(path: Path) -> None:
    forecaster = load_artifact(path)
    assert path.name.startswith(forecaster.spec.network.kind)


def test_there_is_a_golden_artefact_of_every_kind_in_the_newest_format() -> None:
    newest = GOLDEN / f"v{FORMAT_VERSION}"
    assert {load_artifact(path).spec.network.kind for path in newest.iterdir()} == {n.kind for n in EVERY_KIND}


def test_wrong_weights_are_caught_by_the_golden_answer(artifact: Path) -> None:
    weights = load_file(artifact / "weights.safetensors")
    weights["hidden.0.weight"] = weights["hidden.0.weight"] + 0.1
    save_file(weights, artifact / "weights.safetensors")
    with pytest.raises(ArtifactError, match="golden input gives another answer"):
        load_artifact(artifact)


def test_weights_of_another_shape_are_refused_before_memory_is_taken(artifact: Path) -> None:
    content = json.loads((artifact / "spec.json").read_text())
    content["network"]["hidden_size"] = 8192
    content["network"]["layers"] = 16
    (artifact / "spec.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="does not fit the spec at"):
        load_artifact(artifact)


def test_weights_that_are_not_finite_are_refused(artifact: Path) -> None:
    weights = load_file(artifact / "weights.safetensors")
    weights["hidden.0.bias"][0] = np.nan
    save_file(weights, artifact / "weights.safetensors")
    with pytest.raises(ArtifactError, match="not finite"):
        load_artifact(artifact)


def test_a_truncated_file_is_refused(artifact: Path) -> None:
    path = artifact / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"weights.safetensors cannot be read"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["spec.json", "weights.safetensors", "golden.json"])
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"no readable {name}"):
        load_artifact(artifact)


def test_a_newer_format_is_refused_as_newer(artifact: Path) -> None:
    edit(artifact / "spec.json", format_version=99)
    with pytest.raises(ArtifactError, match="format_version 99 is newer than 3"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "1"}, "no integer format_version"),
        ({"surprise": 1}, "surprise"),
        ({"horizon": 0}, "horizon"),
        ({"horizon": "3"}, "horizon"),
        ({"quantiles": [0.9, 0.1]}, "ascend"),
        ({"network": {"kind": "os.system", "input_size": 3}}, "network"),
    ],
)
def test_a_spec_that_is_not_valid_is_refused_with_the_field(
    artifact: Path, change: dict[str, Any], message: str
) -> None:
    edit(artifact / "spec.json", **change)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(artifact)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' * 5000, "\x00"])
def test_a_spec_that_is_no_object_is_refused(artifact: Path, text: str) -> None:
    (artifact / "spec.json").write_text(text)
    with pytest.raises(ArtifactError):
        load_artifact(artifact)


def test_the_digest_changes_with_any_byte(artifact: Path) -> None:
    before = artifact_digest(artifact)
    with (artifact / "golden.json").open("a") as file:
        file.write(" ")
    assert artifact_digest(artifact) != before
