"""The bridge: at least once, whatever dies in between; against a real broker."""

import json
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from paho.mqtt.client import Client, DisconnectFlags, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from forecasting.errors import InputError, LedgerUnavailableError, SourceError
from ledger.ledger import Ledger, open_ledger
from ledger.observations import ObservationStore
from pipelines.bridge import Bridge, BridgeConfig, parse_broker, parse_every, parse_topic, read_message
from tests.conftest import free_port, missing_service
from tests.pipelines.test_folder import Lines
from tests.processes import running

ARRIVED = datetime(2024, 3, 1, 12, 0, 7, tzinfo=UTC)


def config(*topics: str, **changes: Any) -> BridgeConfig:
    fields = {
        "broker": parse_broker("mqtt://127.0.0.1"),
        "dataset": "plant",
        "client_id": "test",
        "batch_seconds": 0.2,
    }
    return BridgeConfig(topics=tuple(map(parse_topic, topics)), **{**fields, **changes})


def read(topic: str, payload: str, *templates: str, **changes: Any) -> list[dict[str, Any]]:
    return read_message(
        config(*(templates or ("plant/{unique_id}/value",)), **changes), topic, payload.encode(), ARRIVED
    )


def test_a_number_is_a_value_at_the_time_it_arrived() -> None:
    row = {"unique_id": "pump-7", "y": 20.5, "ds": "2024-03-01T12:00:07+00:00"}
    assert read("plant/pump-7/value", "20.5") == [row]
    rounded = read("plant/pump-7/value", "20.5", every=parse_every("10s"))
    assert rounded == [{**row, "ds": "2024-03-01T12:00:00+00:00"}]


def test_the_topic_may_say_which_column_it_is() -> None:
    (row,) = read("plant/pump-7/ambient", "3", "plant/{unique_id}/{column}")
    assert (row["unique_id"], row["ambient"], "y" in row) == ("pump-7", 3, False)


def test_json_says_what_the_topic_does_not() -> None:
    said = {"sensor": "pump-7", "t": 1709294400000, "v": 20.5, "battery": 3.1}
    columns = {"unique_id": "sensor", "ds": "t"}
    expected = {"unique_id": "pump-7", "ds": "2024-03-01T12:00:00+00:00", "v": 20.5, "battery": 3.1}
    assert read("plant/x", json.dumps(said), "plant/+", columns=columns, epoch="ms") == [expected]
    chosen = read("plant/x", json.dumps([said, said]), "plant/#", columns={**columns, "y": "v"}, epoch="ms")
    assert chosen == [{"unique_id": "pump-7", "ds": "2024-03-01T12:00:00+00:00", "y": 20.5}] * 2


@pytest.mark.parametrize("payload", ["", "hot", '"hot"', "true", "[[1]]", "{", "[" * 100_000])
def test_what_is_neither_a_number_nor_json_is_refused(payload: str) -> None:
    with pytest.raises(InputError, match="the payload is neither"):
        read("plant/pump-7/value", payload)


@pytest.mark.parametrize("template", ["", "a/#/b", "{unique_id}/{unique_id}", "a/{site}", "a/b+"])
def test_a_template_that_cannot_be_meant_is_refused(template: str) -> None:
    with pytest.raises(InputError):
        parse_topic(template)


@pytest.mark.parametrize("url", ["127.0.0.1", "http://x", "mqtt://", "mqtt://x:port", "mqtt://me:secret@x"])
def test_an_address_that_is_none_is_refused_without_a_password(url: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_broker(url)
    assert "secret" not in str(raised.value)
    assert "secret" not in repr(parse_broker("mqtts://me@x", "secret"))


@pytest.mark.parametrize("text", ["often", "0s", "-1s"])
def test_a_step_is_a_length_of_time(text: str) -> None:
    with pytest.raises(InputError, match="--every"):
        parse_every(text)


# From here on against a real broker.


@pytest.fixture
def broker() -> str:
    try:
        socket.create_connection(("127.0.0.1", 1883), timeout=2).close()
    except OSError:
        missing_service("needs an MQTT broker, such as Mosquitto: none answers at 127.0.0.1:1883")
    return "mqtt://127.0.0.1"


@pytest.fixture
def topic() -> str:
    """A topic nobody else uses."""
    return f"hindcast-test/{secrets.token_hex(6)}"


@pytest.fixture
def client_id() -> Iterator[str]:
    """A session of its own, whose rest is taken from the broker afterwards."""
    name = f"hindcast-test-{secrets.token_hex(6)}"
    yield name
    client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
    client.connect("127.0.0.1", clean_start=True)
    client.loop_start()
    wait_until(client.is_connected)
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as opened:
        yield opened


@pytest.fixture
def publish(broker: str) -> Iterator[Callable[..., None]]:
    """Publish and wait until the broker has it."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.connect("127.0.0.1")
    client.loop_start()

    def send(topic: str, *payloads: str) -> None:
        for sent in [client.publish(topic, payload, qos=1) for payload in payloads]:
            sent.wait_for_publish(10)

    yield send
    client.disconnect()
    client.loop_stop()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def carrying(bridge: Bridge) -> Iterator[Lines]:
    """Run a bridge in a thread until the block ends; its lines."""
    lines = bridge._reporter
    assert isinstance(lines, Lines)
    thread = threading.Thread(target=bridge.run)
    thread.start()
    try:
        wait_until(lambda: any("listening to" in line for line in lines.said))
        yield lines
    finally:
        bridge.stop()
        thread.join(timeout=10)


def stamped(*hours: int) -> list[str]:
    return [json.dumps({"ds": f"2024-03-01T{hour:02}:00Z", "y": hour}) for hour in hours]


def known(ledger: Ledger) -> list[float]:
    return ledger.observations.read("plant").value_R.tolist()


@pytest.mark.mqtt
def test_messages_are_kept_and_bad_ones_set_aside(
    topic: str, client_id: str, ledger: Ledger, publish: Callable[..., None], tmp_path: Path
) -> None:
    wanted = config(f"{topic}/{{unique_id}}/value", client_id=client_id)
    bridge = Bridge(wanted, ledger, Lines(), tmp_path / "aside" / "bad.ndjson")
    with carrying(bridge):
        publish(f"{topic}/pump-7/value", *stamped(0, 1), "hot", '{"ds": "yesterday", "y": 1}', "[1, true]")
        publish(f"{topic}/pump-8/value", "7.5")
        wait_until(lambda: bridge.kept + bridge.refused >= 5 and len(known(ledger)) == 3)
    frame = ledger.observations.read("plant").to_frame()
    assert frame["y"].tolist() == [0, 1, 7.5]
    aside = [json.loads(line) for line in (tmp_path / "aside" / "bad.ndjson").read_text().splitlines()]
    assert [one["payload"] for one in aside] == ["hot", "[1, true]", '{"ds": "yesterday", "y": 1}']
    assert aside[0]["topic"] == f"{topic}/pump-7/value"
    assert "must be a timestamp" in aside[2]["reason"]

    again = Bridge(wanted, ledger, Lines(), tmp_path / "again.ndjson")
    with carrying(again):
        time.sleep(0.3)
    assert (again.kept, again.refused) == (0, 0), "all of them were acknowledged"


@pytest.mark.mqtt
@pytest.mark.parametrize(
    "poison",
    ['{"unique_id": "pump\\ud800", "y": 1}', '{"unique_id": "pump-7", "y\\u0000": 1}', '{"unique_id": "pump-7"}'],
    ids=["half a character", "a column of no name", "no value"],
)
def test_a_message_that_spoils_a_batch_is_set_aside_alone(
    topic: str, client_id: str, ledger: Ledger, publish: Callable[..., None], tmp_path: Path, poison: str
) -> None:
    bridge = Bridge(config(f"{topic}/+", client_id=client_id), ledger, Lines(), tmp_path / "bad.ndjson")
    good = '{"unique_id": "pump-7", "ds": "2024-03-01T00:00Z", "y": 1}'
    with carrying(bridge):
        publish(f"{topic}/x", poison)
        publish(f"{topic}/x", good, poison)
        wait_until(lambda: bridge.refused + bridge.kept >= 3)
    assert known(ledger) == [1]
    aside = [json.loads(line)["payload"] for line in (tmp_path / "bad.ndjson").read_text().splitlines()]
    assert set(aside) == {poison}


@pytest.mark.mqtt
def test_what_comes_while_the_ledger_is_away_is_kept_when_it_is_back(
    topic: str,
    client_id: str,
    ledger: Ledger,
    publish: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, append = threading.Event(), ObservationStore.append
    away.set()

    def fail_while_away(self: ObservationStore, *args: object, **kwargs: object) -> object:
        if away.is_set():
            raise LedgerUnavailableError("the ledger does not answer")
        return append(self, *args, **kwargs)

    monkeypatch.setattr(ObservationStore, "append", fail_while_away)
    monkeypatch.setattr("pipelines.bridge.FIRST_PAUSE", 0.05)
    bridge = Bridge(config(f"{topic}/{{unique_id}}", client_id=client_id), ledger, Lines(), tmp_path / "bad")
    with carrying(bridge) as lines:
        publish(f"{topic}/pump-7", *stamped(*range(10)))
        wait_until(lambda: any("messages wait, trying again" in line for line in lines.said))
        assert known(ledger) == []
        away.clear()
        wait_until(lambda: known(ledger) == list(range(10)))


@pytest.mark.mqtt
def test_a_stop_while_the_ledger_is_away_acknowledges_nothing(
    topic: str,
    client_id: str,
    ledger: Ledger,
    publish: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **kwargs: object) -> object:
        raise LedgerUnavailableError("the ledger does not answer")

    wanted = config(f"{topic}/{{unique_id}}", client_id=client_id)
    with monkeypatch.context() as patch:
        patch.setattr(ObservationStore, "append", fail)
        with carrying(Bridge(wanted, ledger, Lines(), tmp_path / "bad")) as lines:
            publish(f"{topic}/pump-7", *stamped(*range(10)))
            wait_until(lambda: any("messages wait" in line for line in lines.said))
    with carrying(Bridge(wanted, ledger, Lines(), tmp_path / "bad")):
        wait_until(lambda: known(ledger) == list(range(10)))


@pytest.mark.mqtt
@pytest.mark.slow
def test_a_bridge_that_is_killed_again_and_again_loses_nothing(
    topic: str, client_id: str, publish: Callable[..., None], tmp_path: Path
) -> None:
    """SIGKILL in the middle of a stream, and again: every value is in the ledger, once."""
    n, part = 800, 400
    command = [
        *("hindcast", "bridge", "mqtt", "--dataset", "plant"),
        *("--topic", f"{topic}/{{unique_id}}", "--client-id", client_id),
    ]
    home = {"HINDCAST_HOME": str(tmp_path / "home")}
    stamps = pd.date_range("2024-03-01", periods=n, freq="min").strftime("%Y-%m-%dT%H:%MZ")
    payloads = [json.dumps({"ds": ds, "y": i}) for i, ds in enumerate(stamps)]
    missing = []
    with closing(open_ledger(f"sqlite:///{tmp_path}/home/ledger.db")) as ledger:
        for i in range(0, n, part):
            with running(command, tmp_path / f"bridge-{i}.log", home) as process:
                process.wait_for("listening to")
                before = len(known(ledger))
                publish(f"{topic}/pump-7", payloads[i])
                wait_until(lambda before=before: len(known(ledger)) > before)
                publish(f"{topic}/pump-7", *payloads[i + 1 : i + part])
                process.kill()
            missing.append(i + part - len(known(ledger)))
        with running(command, tmp_path / "bridge-last.log", home) as process:
            wait_until(lambda: len(known(ledger)) == n, seconds=60)
            assert process.stop(signal.SIGTERM) == 0
        assert known(ledger) == list(range(n))
    assert all(missing), "each was killed before it had kept all"


def test_a_session_that_another_took_over_is_left_to_it(ledger: Ledger, tmp_path: Path) -> None:
    """Two bridges of one name would take it from each other for ever."""
    bridge = Bridge(config("plant/+"), ledger, Lines(), tmp_path / "bad")
    taken_over = ReasonCode(PacketTypes.DISCONNECT, "Session taken over")
    bridge._on_disconnect(bridge._client, None, DisconnectFlags(True), taken_over, None)
    with pytest.raises(SourceError, match="another client connected as 'test'"):
        bridge.run()


def test_a_broker_that_is_away_is_told_once_and_tried_again(ledger: Ledger, tmp_path: Path) -> None:
    away = config("plant/+", broker=parse_broker(f"mqtt://127.0.0.1:{free_port()}"))
    bridge = Bridge(away, ledger, Lines(), tmp_path / "bad")
    thread = threading.Thread(target=bridge.run)
    thread.start()
    wait_until(lambda: bool(bridge._reporter.said))
    bridge.stop()
    thread.join(timeout=10)
    assert bridge._reporter.said[0].endswith("does not answer; trying again")
