"""The last good copy answers while the registry does not, and gives way as soon as it does."""

import fcntl
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from forecasting.errors import RegistryUnavailableError
from forecasting.registry import CHAMPION, TAG_DATASET, DirectoryRegistry, ModelVersion
from service.last_good import LastGood
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.test_model_slot import (
    REQUEST,
    ask,
    describe,
    exchange_weights,
    expect,
    stored,
    truncate_weights,
)
from tests.service.test_telemetry import sample


class DownRegistry(DirectoryRegistry):
    """A registry that can be down, or hang, from the first look on."""

    def __init__(self, root: Path, *, down: bool = True) -> None:
        super().__init__(root)
        self.down = down
        self.answering = threading.Event()
        self.answering.set()
        self.asked = 0

    def models(self) -> list[str]:
        self.asked += 1
        self.answering.wait(timeout=30)
        if self.down:
            raise RegistryUnavailableError("the registry did not answer")
        return super().models()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def start(serve: Serve, home: Path) -> Callable[..., AbstractContextManager[httpx.Client]]:
    """Return a function that serves with a home of its own."""
    return lambda *registry, **settings: serve(*registry, **{"home": home, **settings})


Start = Callable[..., AbstractContextManager[httpx.Client]]


def kept(home: Path, model: str = "pump") -> list[str]:
    """Return the versions of a model that are kept."""
    folders = (home / "last-good" / model).glob("[!.]*")
    return sorted(path.name.split(".")[1] for path in folders)


def files(home: Path) -> Path:
    (folder,) = (home / "last-good" / "pump").glob("[!.]*")
    return folder


@pytest.fixture
def was_served(publish: Publish, start: Start, home: Path) -> None:
    """Serve version 1 once, so that it is kept."""
    publish(build_forecaster("pump", seed=1))
    with start() as client:
        wait_until(lambda: kept(home) == ["1"])
        assert describe(client)["source"] == "registry"


def test_every_version_that_answered_is_kept_and_the_one_before_it_removed(
    publish: Publish, start: Start, home: Path
) -> None:
    publish(build_forecaster("pump", seed=1))
    with start() as client:
        wait_until(lambda: kept(home) == ["1"])
        publish(build_forecaster("pump", seed=2))
        wait_until(lambda: kept(home) == ["2"])
        publish(build_forecaster("pump", seed=3), damage=truncate_weights)
        wait_until(lambda: describe(client)["status"] == "stale")
    assert kept(home) == ["2"], "what failed its checks is no last good model"
    there = sorted(path.name for path in files(home).iterdir())
    assert there == ["golden.json", "kept.json", "spec.json", "weights.safetensors"]
    left = {path.name for path in (home / "last-good" / "pump").iterdir()}
    assert left == {files(home).name, ".lock"}


@pytest.mark.usefixtures("was_served")
def test_a_cold_start_without_a_registry_answers_with_the_copy_and_says_so(
    registry: DirectoryRegistry, start: Start
) -> None:
    with start(DownRegistry(registry.root)) as client:
        assert ask(client) == ("1", expect(build_forecaster("pump", seed=1)))
        ready = client.get("/health/ready").json()
        (model,) = ready["models"]
        assert (model["status"], model["source"]) == ("stale", "disk")
        assert model["failure"]["detail"] == ready["registry"]["detail"] == "the registry did not answer"
        assert sample(client, "hindcast_model_from_disk", model="pump") == 1
        assert sample(client, "hindcast_model_stale", model="pump") == 1
        assert sample(client, "hindcast_ready") == 1


@pytest.mark.usefixtures("was_served")
def test_a_directory_that_is_not_mounted_takes_no_model_away(registry: DirectoryRegistry, start: Start) -> None:
    elsewhere = registry.root.rename(registry.root.with_name("unmounted"))
    with start() as client:
        assert (ask(client)[0], describe(client)["source"]) == ("1", "disk")
        elsewhere.rename(registry.root)
        wait_until(lambda: describe(client)["source"] == "registry")
        registry.root.rename(elsewhere)
        wait_until(lambda: sample(client, "hindcast_registry_failing") == 1)
        assert (ask(client)[0], describe(client)["source"]) == ("1", "registry")


@pytest.mark.usefixtures("was_served")
def test_the_registry_is_followed_as_soon_as_it_answers(
    registry: DirectoryRegistry, publish: Publish, start: Start, home: Path
) -> None:
    down = DownRegistry(registry.root)
    with start(down) as client:
        assert describe(client)["source"] == "disk"
        down.down = False
        wait_until(lambda: describe(client)["status"] == "ok")
        assert describe(client)["source"] == "registry"
        assert sample(client, "hindcast_model_from_disk", model="pump") == 0
        publish(build_forecaster("pump", seed=2))
        wait_until(lambda: ask(client)[0] == "2")
        wait_until(lambda: kept(home) == ["2"])


@pytest.mark.usefixtures("was_served")
def test_a_registry_that_hangs_at_the_start_is_not_waited_for(registry: DirectoryRegistry, start: Start) -> None:
    hanging = DownRegistry(registry.root, down=False)
    hanging.answering.clear()
    with start(hanging, last_good_seconds=0.1) as client:
        assert ask(client)[0] == "1"
        assert describe(client)["failure"]["detail"] == "the registry has not answered for 0.1 seconds"
        hanging.answering.set()
        wait_until(lambda: describe(client)["status"] == "ok")


@pytest.mark.usefixtures("was_served")
def test_a_copy_goes_before_a_new_version_that_is_bad(publish: Publish, start: Start) -> None:
    publish(build_forecaster("pump", seed=2), damage=exchange_weights)
    with start() as client:
        assert ask(client) == ("1", expect(build_forecaster("pump", seed=1)))
        assert describe(client)["status"] == "stale"
        assert "golden input" in describe(client)["failure"]["detail"]


@pytest.mark.usefixtures("was_served")
@pytest.mark.parametrize("gone", ["the model", "the alias"])
def test_what_was_taken_out_of_the_registry_does_not_come_back(
    registry: DirectoryRegistry, start: Start, gone: str
) -> None:
    down = DownRegistry(registry.root)
    with start(down) as client:
        assert ask(client)[0] == "1"
        if gone == "the model":
            shutil.rmtree(registry.root / "pump")
        else:
            registry.remove_alias("pump", CHAMPION)
        down.down = False
        wait_until(lambda: client.post("/v1/forecast", json=REQUEST).status_code == 404)
    with start(DownRegistry(registry.root, down=False), ready=False) as client:
        wait_until(lambda: "has the alias" in client.get("/health/ready").json().get("detail", ""))
        assert client.post("/v1/forecast", json=REQUEST).status_code == 404


def corrupt_weights(folder: Path) -> None:
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-3] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)


def lie_about_the_digest(folder: Path) -> None:
    said = json.loads((folder / "kept.json").read_text())
    said["tags"]["hindcast.artifact_digest"] = "0" * 64
    (folder / "kept.json").write_text(json.dumps(said))


def lose_a_file(folder: Path) -> None:
    (folder / "golden.json").unlink()


@pytest.mark.usefixtures("was_served")
@pytest.mark.parametrize("damage", [corrupt_weights, lie_about_the_digest, lose_a_file])
def test_a_copy_that_is_damaged_is_set_aside(
    registry: DirectoryRegistry, start: Start, home: Path, damage: Callable[[Path], None]
) -> None:
    damage(files(home))
    down = DownRegistry(registry.root)
    with start(down, ready=False) as client:
        wait_until(lambda: down.asked >= 2)
        assert client.get("/health/ready").status_code == 503
        assert client.post("/v1/forecast", json=REQUEST).status_code == 404
        assert kept(home) == []
        assert (home / "last-good" / "pump" / ".set-aside" / "kept.json").exists()
        down.down = False
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        wait_until(lambda: kept(home) == ["1"])


@pytest.mark.usefixtures("was_served")
@pytest.mark.parametrize("other", [{"alias": "challenger"}, {"registry_uri": "somewhere-else"}])
def test_a_copy_of_another_alias_or_registry_is_none(
    registry: DirectoryRegistry, start: Start, other: dict[str, str]
) -> None:
    down = DownRegistry(registry.root)
    with start(down, ready=False, **other) as client:
        wait_until(lambda: down.asked >= 2)
        assert client.post("/v1/forecast", json=REQUEST).status_code == 404


@pytest.mark.usefixtures("was_served")
def test_what_cannot_be_kept_is_served_all_the_same(
    registry: DirectoryRegistry, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "last-good").write_text("no folder")
    with start(home=tmp_path / "other") as client:
        assert ask(client)[0] == "1"
        wait_until(lambda: "could not be kept on disk" in caplog.text)
        assert describe(client)["status"] == "ok"


def version_of(registry: DirectoryRegistry, number: str) -> ModelVersion:
    return registry.version("pump", number)


def test_the_slots_tags_are_kept_and_no_address_is(
    registry: DirectoryRegistry, publish: Publish, tmp_path: Path
) -> None:
    publish(build_forecaster("pump"))
    registry.annotate("pump", "1", {TAG_DATASET: "plant"})
    last_good = LastGood(tmp_path, "postgresql://me:secret@db/x", "champion")
    last_good.keep(version_of(registry, "1"), stored(registry, "1"))
    (copy,) = last_good.copies("pump")
    assert copy.version.tags[TAG_DATASET] == "plant"
    assert copy.version.digest == version_of(registry, "1").digest
    assert "secret" not in (copy.path / "kept.json").read_text() + copy.path.name


def test_a_copy_that_could_not_be_written_whole_leaves_the_one_before(
    registry: DirectoryRegistry, publish: Publish, tmp_path: Path
) -> None:
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2))
    last_good = LastGood(tmp_path, "here", "champion")
    last_good.keep(version_of(registry, "1"), stored(registry, "1"))
    (stored(registry, "2") / "golden.json").unlink()
    with pytest.raises(FileNotFoundError):
        last_good.keep(version_of(registry, "2"), stored(registry, "2"))
    assert [copy.version.version for copy in last_good.copies("pump")] == ["1"]
    assert len(list((tmp_path / "last-good" / "pump").glob("[!.]*"))) == 1


def test_several_processes_may_share_a_home(registry: DirectoryRegistry, publish: Publish, tmp_path: Path) -> None:
    """While one replaces the copy others find a whole one, whatever the moment."""
    for seed in (1, 2):
        publish(build_forecaster("pump", seed=seed))
    both = [version_of(registry, number) for number in ("1", "2")]
    homes = [LastGood(tmp_path, "here", "champion") for _ in range(3)]
    homes[0].keep(both[0], stored(registry, "1"))

    def replace_it(last_good: LastGood) -> None:
        for i in range(30):
            last_good.keep(both[i % 2], stored(registry, both[i % 2].version))

    writers = [threading.Thread(target=replace_it, args=(last_good,)) for last_good in homes[:2]]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        for copy in homes[2].copies("pump"):
            assert copy.version.version in ("1", "2")
    assert len(homes[2].copies("pump")) == 1


def test_a_process_that_holds_the_lock_for_ever_holds_nobody(
    registry: DirectoryRegistry, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(build_forecaster("pump", seed=1))
    publish(build_forecaster("pump", seed=2))
    last_good = LastGood(tmp_path, "here", "champion")
    last_good.keep(version_of(registry, "1"), stored(registry, "1"))
    monkeypatch.setattr("service.last_good.LONGEST_WAIT", 0.1)
    with (tmp_path / "last-good" / "pump" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            last_good.keep(version_of(registry, "2"), stored(registry, "2"))
    assert [copy.version.version for copy in last_good.copies("pump")] == ["1"]
    last_good.keep(version_of(registry, "2"), stored(registry, "2"))
    assert [copy.version.version for copy in last_good.copies("pump")] == ["2"]
