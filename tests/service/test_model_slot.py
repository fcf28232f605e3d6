"""A slot follows its alias, never answers with anything it could not check, and keeps what it has."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from forecasting.errors import RegistryUnavailableError
from forecasting.forecaster import Forecaster, summarise
from forecasting.registry import CHAMPION, DirectoryRegistry, ModelVersion, promote, rollback
from forecasting.spec import FORMAT_VERSION
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

Y = [float(v) for v in 100 + np.random.default_rng(3).normal(size=12).cumsum()]
REQUEST = {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": Y}]}


def ask(client: httpx.Client) -> tuple[str, list[float]]:
    answer = client.post("/v1/forecast", json=REQUEST).json()
    return answer["version"], answer["forecasts"][0]["mean"]


def expect(forecaster: Forecaster) -> list[float]:
    quantiles_BHQ = forecaster.predict(np.array([Y]))
    return summarise(quantiles_BHQ, forecaster.spec.quantiles, [])["mean"][0].tolist()


def describe(client: httpx.Client) -> dict[str, object]:
    return client.get("/v1/models/pump").json()


def is_stale(client: httpx.Client) -> bool:
    return describe(client)["status"] == "stale"


def test_slot_answers_with_the_version_its_alias_points_to(publish: Publish, serve: Serve) -> None:
    first, second = build_forecaster("pump", seed=1), build_forecaster("pump", seed=2)
    publish(first)
    publish(second, champion=False)
    with serve() as client:
        assert ask(client) == ("1", expect(first))


def test_slot_swaps_when_the_alias_moves_and_back_again(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    first, second = build_forecaster("pump", seed=1), build_forecaster("pump", seed=2)
    publish(first)
    with serve() as client:
        publish(second)
        wait_until(lambda: describe(client)["version"] == "2")
        assert ask(client) == ("2", expect(second))
        rollback(registry, "pump")
        wait_until(lambda: describe(client)["version"] == "1")
        assert ask(client) == ("1", expect(first))


def test_every_answer_comes_wholly_from_one_version_while_the_alias_moves(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    models = {str(seed): build_forecaster("pump", seed=seed) for seed in (1, 2, 3)}
    for forecaster in models.values():
        publish(forecaster)
    expected = {version: expect(forecaster) for version, forecaster in models.items()}
    stop = threading.Event()

    def keep_asking(client: httpx.Client) -> list[tuple[str, list[float]]]:
        answers = []
        while not stop.is_set():
            answers.append(ask(client))
        return answers

    with serve() as client, ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(keep_asking, client) for _ in range(3)]
        for version in ("1", "2", "3", "1"):
            registry.set_alias("pump", CHAMPION, version)
            wait_until(lambda version=version: describe(client)["version"] == version)
        stop.set()
        answers = [answer for future in asking for answer in future.result()]
    assert {version for version, _ in answers} == {"1", "2", "3"}
    # In other company a window's last bits may differ: kernels depend on the size of the batch.
    assert all(mean == pytest.approx(expected[version], rel=1e-6) for version, mean in answers)


def test_a_version_that_was_published_anew_under_its_old_number_is_noticed(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump", seed=1))
    other = build_forecaster("pump", seed=2)
    with serve() as client:
        shutil.rmtree(registry.root)
        publish(other)
        wait_until(lambda: ask(client)[1] == expect(other))
        assert describe(client)["version"] == "1"


def truncate_weights(artifact: Path) -> None:
    weights = artifact / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def poison_weights(artifact: Path) -> None:
    state = load_file(artifact / "weights.safetensors")
    name = next(name for name in state if name.endswith("weight"))
    state[name] = state[name] * np.float32(np.nan)
    save_file(state, artifact / "weights.safetensors")


def exchange_weights(artifact: Path) -> None:
    state = load_file(artifact / "weights.safetensors")
    save_file({name: tensor + np.float32(0.5) for name, tensor in state.items()}, artifact / "weights.safetensors")


def remove_golden(artifact: Path) -> None:
    golden = json.loads((artifact / "golden.json").read_text())
    del golden["quantiles"]
    (artifact / "golden.json").write_text(json.dumps(golden))


def edit_spec(**changes: object) -> Callable[[Path], None]:
    def edit(artifact: Path) -> None:
        spec = json.loads((artifact / "spec.json").read_text())
        (artifact / "spec.json").write_text(json.dumps({**spec, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "weights.safetensors cannot be read"),
        (poison_weights, "not finite"),
        (exchange_weights, "the golden input gives another answer"),
        (remove_golden, "golden.json cannot be replayed"),
        (edit_spec(format_version=99), f"format_version 99 is newer than {FORMAT_VERSION}"),
        (edit_spec(horizon=9), "does not fit the spec"),
        (edit_spec(surprise=1), "not a valid spec"),
        (edit_spec(name="other"), "the artefact is of model 'other'"),
        (edit_spec(freq="no-such-freq"), "the artefact cannot answer: unknown frequency"),
        (edit_spec(level=[99.9]), "the artefact cannot answer: level 99.9"),
    ],
)
def test_slot_keeps_serving_when_the_new_version_is_bad(
    publish: Publish, serve: Serve, damage: Callable[[Path], None], message: str
) -> None:
    good, better = build_forecaster("pump", seed=1), build_forecaster("pump", seed=3)
    publish(good)
    with serve() as client:
        publish_bad(publish, damage)
        wait_until(lambda: is_stale(client))
        assert ask(client) == ("1", expect(good))
        failure = describe(client)["failure"]
        assert failure["version"] == "2"
        assert failure["error"] == "ArtifactError"
        assert message in failure["detail"]
        publish(better)
        wait_until(lambda: describe(client)["version"] == "3")
        assert ask(client) == ("3", expect(better))
        assert describe(client)["failure"] is None


def publish_bad(publish: Publish, damage: Callable[[Path], None]) -> ModelVersion:
    return publish(build_forecaster("pump", seed=2), damage=damage)


def stored(registry: DirectoryRegistry, version: str) -> Path:
    return registry.root / "pump" / "versions" / version


def test_slot_refuses_files_that_changed_after_publication(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    """The other weights are sound and pass their own golden check: only the digest tells."""
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2), champion=False)
    publish(build_forecaster("pump", seed=3), champion=False)
    for name in ("weights.safetensors", "golden.json"):
        shutil.copyfile(stored(registry, "3") / name, stored(registry, "2") / name)
    with serve() as client:
        promote(registry, "pump", "2")
        wait_until(lambda: is_stale(client))
        assert ask(client) == ("1", expect(build_forecaster("pump", seed=1)))
        assert "has digest" in describe(client)["failure"]["detail"]


def test_slot_refuses_a_version_without_a_digest(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2), champion=False)
    meta = stored(registry, "2") / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "tags": {}}))
    with serve() as client:
        promote(registry, "pump", "2")
        wait_until(lambda: is_stale(client))
        assert describe(client)["failure"]["detail"] == "version 2 was published without a digest"
        assert ask(client)[0] == "1"


def test_what_is_shown_of_a_failure_names_no_path(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2), champion=False)
    (stored(registry, "2") / "weights.safetensors").unlink()
    with serve() as client:
        promote(registry, "pump", "2")
        wait_until(lambda: is_stale(client))
        shown = client.get("/v1/models").text + client.get("/health/ready").text
        assert "lost its <address>" in shown
        assert str(registry.root) not in shown
        assert ".safetensors" not in shown


def test_a_removed_registry_changes_no_answer_and_its_return_is_noticed(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    first = build_forecaster("pump", seed=1)
    publish(first)
    with serve() as client:
        away = registry.root.with_name("away")
        registry.root.rename(away)
        wait_until(lambda: client.get("/health/ready").json()["registry"] is not None)
        assert ask(client) == ("1", expect(first))
        assert client.get("/health/ready").status_code == 200
        away.rename(registry.root)
        wait_until(lambda: client.get("/health/ready").json()["registry"] is None)
        assert describe(client)["status"] == "ok"


def test_a_new_model_appears_without_a_restart(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        assert client.get("/v1/models/fan").status_code == 404
        publish(build_forecaster("fan"))
        wait_until(lambda: client.get("/v1/models/fan").status_code == 200)
        assert client.post("/v1/forecast", json={**REQUEST, "model": "fan"}).status_code == 200


def test_a_new_model_that_cannot_be_loaded_takes_nothing_from_the_others(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        publish(build_forecaster("fan"), damage=truncate_weights)
        wait_until(lambda: client.get("/v1/models/fan").status_code == 200)
        assert client.get("/v1/models/fan").json()["status"] == "failed"
        assert client.get("/health/ready").status_code == 200
        answer = client.post("/v1/forecast", json={**REQUEST, "model": "fan", "fallback": False})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["type"] == "urn:hindcast:problem:model-not-loaded"


def test_a_model_nobody_promoted_is_not_served(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    publish(build_forecaster("draft"), champion=False)
    with serve() as client:
        assert [model["model"] for model in client.get("/v1/models").json()["models"]] == ["pump"]


def test_only_the_models_asked_for_are_served_and_by_the_alias_asked_for(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("fan"))
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2), champion=False)
    registry.set_alias("pump", "challenger", "2")
    with serve(models="pump", alias="challenger") as client:
        assert [model["model"] for model in client.get("/v1/models").json()["models"]] == ["pump"]
        assert ask(client) == ("2", expect(build_forecaster("pump", seed=2)))


class CountingRegistry(DirectoryRegistry):
    """Counts what is fetched, and can be told to hang or to fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self.answering = threading.Event()
        self.answering.set()
        self.trouble: Exception | None = None

    def models(self) -> list[str]:
        self.answering.wait(timeout=30)
        if self.trouble is not None:
            raise self.trouble
        return super().models()

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        self.fetched.append(version.version)
        return super().fetch(version, into)


def test_a_failing_version_is_tried_again_but_not_in_a_hot_loop(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    counting = CountingRegistry(registry.root)
    publish(build_forecaster("pump", seed=1))
    with serve(counting) as client:
        publish_bad(publish, truncate_weights)
        wait_until(lambda: counting.fetched.count("2") >= 3)
        attempts, began = counting.fetched.count("2"), time.monotonic()
        time.sleep(0.6)
        assert counting.fetched.count("2") - attempts <= 1 + (time.monotonic() - began) / 0.4
        assert counting.fetched.count("1") == 1, "what is served already is not fetched again"
        assert describe(client)["failure"]["attempts"] >= 3


def test_a_version_repaired_in_place_is_taken_up(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    publish(build_forecaster("pump", seed=1))
    second = build_forecaster("pump", seed=2)
    publish(second, champion=False)
    weights = stored(registry, "2") / "weights.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-8])
    with serve() as client:
        promote(registry, "pump", "2")
        wait_until(lambda: is_stale(client))
        weights.write_bytes(sound)
        wait_until(lambda: ask(client) == ("2", expect(second)))
        assert describe(client)["status"] == "ok"


@pytest.mark.parametrize(
    ("trouble", "error", "detail"),
    [
        (
            RegistryUnavailableError("the registry at postgresql://me:secret@db/x did not answer"),
            "RegistryUnavailableError",
            "the registry at <address> did not answer",
        ),
        (KeyError("secret"), "KeyError", "unexpected error; the service's log has it"),
    ],
)
def test_a_registry_that_fails_is_shown_and_every_model_goes_on_serving(
    registry: DirectoryRegistry, publish: Publish, serve: Serve, trouble: Exception, error: str, detail: str
) -> None:
    failing = CountingRegistry(registry.root)
    publish(build_forecaster("pump", seed=1))
    with serve(failing) as client:
        failing.trouble = trouble
        wait_until(lambda: client.get("/health/ready").json()["registry"] is not None)
        shown = client.get("/health/ready")
        assert shown.status_code == 200
        assert shown.json()["registry"]["error"] == error
        assert shown.json()["registry"]["detail"] == detail
        assert ask(client)[0] == "1"
        failing.trouble = None
        wait_until(lambda: client.get("/health/ready").json()["registry"] is None)


def test_a_registry_that_hangs_is_shown_and_every_model_goes_on_serving(
    registry: DirectoryRegistry, publish: Publish, serve: Serve
) -> None:
    hanging = CountingRegistry(registry.root)
    publish(build_forecaster("pump", seed=1))
    with serve(hanging, poll_timeout_seconds=0.2) as client:
        hanging.answering.clear()
        wait_until(lambda: client.get("/health/ready").json()["registry"] is not None)
        assert client.get("/health/ready").json()["registry"]["detail"] == (
            "the registry has not answered for 0.2 seconds"
        )
        assert ask(client)[0] == "1"
        publish(build_forecaster("pump", seed=2))
        hanging.answering.set()
        wait_until(lambda: describe(client)["version"] == "2")
        assert client.get("/health/ready").json()["registry"] is None
