"""The bridge: messages of an MQTT broker into the ledger, each at least once.

A message is acknowledged when what it says is durable, and not before: the broker keeps the session, and sends
again what was not acknowledged. How much that may be is bounded, so while the ledger is away messages wait at the
broker.
"""

import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from forecasting.errors import InputError, LedgerUnavailableError, SourceError
from ledger.ledger import Ledger
from ledger.rules import build_rows, check_rows
from pipelines.report import Reporter

SESSION_SECONDS = 7 * 24 * 3600
"""How long the broker keeps what arrives while no bridge is connected."""
MOST_UNACKNOWLEDGED = 2_000
MOST_WAITING = 4 * MOST_UNACKNOWLEDGED
"""Messages held here; of those sent with QoS 0, which nobody sends again, what is more is dropped and told."""
LULL_SECONDS = 0.02
"""A batch is closed when nothing came for so long: the broker may wait for acknowledgements."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
MOST_SET_ASIDE_BYTES = 64 * 1024**2
LONGEST_SHOWN = 4096

FATAL = {"Not authorized", "Bad user name or password", "Client identifier not valid", "Banned"}
TAKEN_OVER = "Session taken over"


@dataclass(frozen=True)
class Broker:
    """Where the messages come from."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_broker(url: str, password: str | None = None) -> Broker:
    """Read `mqtt://user@host:1883`, or `mqtts://` for TLS.

    Raises:
        InputError: it is no such address, or has a password in it, where every process list shows it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError("a broker is mqtt://user@host:1883, or mqtts:// for TLS") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise InputError("a broker is mqtt://user@host:1883, or mqtts:// for TLS")
    if parts.password is not None:
        raise InputError("the broker's password does not belong on the command line; set HINDCAST_MQTT_PASSWORD")
    tls = parts.scheme == "mqtts"
    return Broker(parts.hostname, port or (8883 if tls else 1883), parts.username, password, tls)


@dataclass(frozen=True)
class Topic:
    """Topics to listen to, and what their levels say: `plant/{unique_id}/{column}`."""

    filter: str
    pattern: re.Pattern[str]

    def match(self, topic: str) -> dict[str, str] | None:
        """Return what a topic says; None where it is another one's."""
        found = self.pattern.fullmatch(topic)
        return None if found is None else found.groupdict()


def parse_topic(template: str) -> Topic:
    """Read a template of topics: levels, `{unique_id}`, `{column}`, and MQTT's own `+` and `#`.

    Raises:
        InputError: it cannot be meant so.
    """
    levels = template.split("/")
    names = [level for level in levels if level.startswith("{")]
    if not template or len(set(names)) < len(names) or "#" in levels[:-1]:
        raise InputError(f"{template!r} is no template of topics, such as plant/{{unique_id}}/value")
    patterns = []
    for level in levels:
        if level in ("{unique_id}", "{column}"):
            patterns.append(f"(?P<{level[1:-1]}>[^/]+)")
        elif level in ("+", "#"):
            patterns.append("[^/]*" if level == "+" else ".*")
        elif set(level) & set("{}+#"):
            raise InputError(
                f"{template!r}: a level is a word, {{unique_id}}, {{column}}, + or # (last), not {level!r}"
            )
        else:
            patterns.append(re.escape(level))
    return Topic(
        "/".join("+" if level.startswith("{") else level for level in levels), re.compile("/".join(patterns))
    )


def parse_every(text: str) -> pd.Timedelta:
    """Read a step such as 10s.

    Raises:
        InputError: it is no length of time above zero.
    """
    try:
        every = pd.Timedelta(text)
    except ValueError as error:
        raise InputError(f"--every is a length of time such as 10s or 1min, not {text!r}") from error
    if not every > pd.Timedelta(0):
        raise InputError(f"--every is a length of time above zero, not {text!r}")
    return every


@dataclass(frozen=True)
class BridgeConfig:
    """What a bridge listens to and how messages are read."""

    broker: Broker
    topics: tuple[Topic, ...]
    dataset: str
    client_id: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a column is, and its key in a JSON message. Naming value columns keeps only those."""
    epoch: str | None = None
    """Unit of timestamps that are numbers since 1970: s, ms or us. None: they are text in ISO 8601."""
    every: pd.Timedelta | None = None
    """Messages without a timestamp get the time they arrived, rounded down to this step."""
    batch: int = 1_000
    batch_seconds: float = 1.0


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    arrived: datetime
    connection: int
    mid: int
    qos: int


_Said = tuple[_Message, list[dict[str, Any]]]
"""A message and its rows."""


class Bridge:
    """Carries messages from one broker to one dataset."""

    def __init__(self, config: BridgeConfig, ledger: Ledger, reporter: Reporter, set_aside: Path) -> None:
        self.config = config
        self.kept = 0
        self.refused = 0
        self._ledger = ledger
        self._reporter = reporter
        self._set_aside = set_aside
        self._waiting: queue.Queue[_Message] = queue.Queue()
        self._lock = threading.Lock()
        self._connection = 0
        self._fatal: Exception | None = None
        self._stop = threading.Event()
        self._told_away = False
        self._client = self._build_client()

    def run(self) -> None:
        """Carry messages until stopped; what was taken from the broker is kept first.

        Raises:
            SourceError: the broker refuses this client, and will again.
        """
        self._client.loop_start()
        try:
            while not self._stop.is_set() and self._fatal is None:
                batch = self._collect()
                if batch:
                    self._carry(batch)
        finally:
            self._client.disconnect()
            self._client.loop_stop()
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """End the run after the batch it is at; for signal handlers and other threads."""
        self._stop.set()

    def _build_client(self) -> Client:
        config = self.config
        client = Client(CallbackAPIVersion.VERSION2, config.client_id, protocol=MQTTv5, manual_ack=True)
        if config.broker.user is not None:
            client.username_pw_set(config.broker.user, config.broker.password)
        if config.broker.tls:
            client.tls_set()
        client.reconnect_delay_set(1, int(LONGEST_PAUSE))
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        asked.SessionExpiryInterval = SESSION_SECONDS
        asked.ReceiveMaximum = MOST_UNACKNOWLEDGED
        client.connect_async(config.broker.host, config.broker.port, clean_start=False, properties=asked)
        return client

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del properties
        if reason.is_failure:
            text = f"the broker {self.config.broker} refuses {self.config.client_id!r}: {reason.getName()}"
            if reason.getName() in FATAL:
                self._fatal = SourceError(text)
            else:
                self._tell_away(text)
            return
        with self._lock:
            # Acknowledgements of an earlier connection mean nothing to this one.
            self._connection += 1
        if flags.session_present:
            self._forget_what_comes_again()
        # Retained messages are old ones: they would get the time at which they come.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(topic.filter, options) for topic in self.config.topics])
        self._told_away = False

    def _on_connect_fail(self, client: Client, _: object) -> None:
        del client
        self._tell_away(f"the broker {self.config.broker} does not answer")

    def _on_disconnect(
        self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        del client, flags, properties
        if reason.getName() == TAKEN_OVER:
            self._fatal = SourceError(f"another client connected as {self.config.client_id!r}; give each its own")
        elif reason.is_failure and not self._stop.is_set():
            why = f"{reason.getName()}; does anybody else connect as {self.config.client_id!r}?"
            self._tell_away(f"lost the broker {self.config.broker}: {why}")

    def _on_subscribe(
        self, client: Client, _: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        del client, mid, properties
        topics = ", ".join(topic.filter for topic in self.config.topics)
        self._reporter.say(f"listening to {topics} of {self.config.broker} as {self.config.client_id}")
        for topic, reason in zip(self.config.topics, reasons, strict=False):
            if reason.is_failure or reason.value < 1:
                self._fatal = SourceError(
                    f"the broker does not grant {topic.filter!r} with QoS 1: {reason.getName()}"
                )

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        del client
        if message.qos == 0 and self._waiting.qsize() >= MOST_WAITING:
            self._reporter.say(f"dropped a message of {message.topic!r}: it came with QoS 0, and too many wait")
            return
        arrived = self._ledger.clock()
        self._waiting.put(
            _Message(message.topic, bytes(message.payload), arrived, self._connection, message.mid, message.qos)
        )

    def _forget_what_comes_again(self) -> None:
        kept = []
        while not self._waiting.empty():
            message = self._waiting.get_nowait()
            if message.qos == 0:
                kept.append(message)
        for message in kept:
            self._waiting.put(message)

    def _tell_away(self, text: str) -> None:
        """Say that the broker is away, once until it is back."""
        if not self._told_away:
            self._reporter.say(f"{text}; trying again")
        self._told_away = True

    def _collect(self) -> list[_Message]:
        """Return the next messages: as many as come in one go, within the limits of a batch."""
        batch: list[_Message] = []
        until = time.monotonic() + self.config.batch_seconds
        while len(batch) < self.config.batch and time.monotonic() < until:
            try:
                batch.append(self._waiting.get(timeout=LULL_SECONDS if batch else self.config.batch_seconds))
            except queue.Empty:
                break
        return batch

    def _carry(self, batch: Sequence[_Message]) -> None:
        """Keep what the messages say, however often it takes, and acknowledge them."""
        pause = FIRST_PAUSE
        while True:
            try:
                self._keep(batch)
                break
            except (LedgerUnavailableError, OSError) as error:
                self._reporter.say(f"{error}; {len(batch)} messages wait, trying again in {pause:g} s")
                if self._stop.wait(pause) or self._fatal is not None:
                    return  # Not acknowledged: they come again.
                pause = min(2 * pause, LONGEST_PAUSE)
        with self._lock:
            for message in batch:
                if message.qos and message.connection == self._connection:
                    self._client.ack(message.mid, message.qos)

    def _keep(self, batch: Sequence[_Message]) -> None:
        said: list[_Said] = []
        bad: list[tuple[_Message, str]] = []
        for message in batch:
            try:
                said.append((message, read_message(self.config, message.topic, message.payload, message.arrived)))
            except InputError as error:
                bad.append((message, str(error)))
        kept = self._append(said, bad)
        if bad:
            self._put_aside(bad)
        self.kept += kept
        self.refused += len(bad)

    def _append(self, said: Sequence[_Said], bad: list[tuple[_Message, str]]) -> int:
        """Append what messages say, and add to `bad` those of which something cannot be kept, and why.

        Columns are asked of all rows together; where they cannot be kept, each message is asked by itself.
        """
        sender = [message for message, rows in said for _ in rows]
        if not sender:
            return 0
        try:
            frame, given = build_rows([row for _, rows in said for row in rows])
            checked = check_rows(frame, most=len(sender))
        except InputError as error:
            if len(said) > 1:
                return sum(self._append([one], bad) for one in said)
            bad.append((sender[0], str(error)))
            return 0
        bad.extend((sender[refusal.row], str(refusal)) for refusal in checked.refusals)
        told = {name: given_R[checked.good_R] for name, given_R in given.items()}
        if len(checked.rows):
            self._ledger.observations.append(self.config.dataset, checked.rows, given=told)
        return len(checked.rows)

    def _put_aside(self, bad: Sequence[tuple[_Message, str]]) -> None:
        """Write down what could not be kept, and why, so that nothing is lost by acknowledging it."""
        path = self._set_aside
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MOST_SET_ASIDE_BYTES:
            path.replace(path.with_suffix(".old.ndjson"))
        with path.open("a", encoding="utf-8") as file:
            for message, reason in bad:
                payload = message.payload[:LONGEST_SHOWN].decode("utf-8", errors="backslashreplace")
                told = {
                    "at": message.arrived.isoformat(),
                    "topic": message.topic,
                    "reason": reason,
                    "payload": payload,
                }
                file.write(json.dumps(told) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._reporter.say(f"set {len(bad)} aside in {path}; the first: {bad[0][0].topic}: {bad[0][1]}")


def read_message(config: BridgeConfig, topic: str, payload: bytes, arrived: datetime) -> list[dict[str, Any]]:
    """Return the rows a message says: a number, or JSON: a number, an object, or a list of objects.

    Raises:
        InputError: it is nothing of the kind.
    """
    said = next((found for one in config.topics if (found := one.match(topic)) is not None), None)
    if said is None:
        raise InputError("the topic fits no template")
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise InputError("the payload is neither a number nor JSON") from None
    rows = [_read_row(config, said, part) for part in (content if isinstance(content, list) else [content])]
    stamp = pd.Timestamp(arrived).floor(config.every) if config.every is not None else arrived
    for row in rows:
        row.setdefault("ds", stamp.isoformat())
    return rows


def _read_row(config: BridgeConfig, said: Mapping[str, str], content: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(content, dict):
        row = _rename(content, config.columns)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        row = {"y": content}
    else:
        raise InputError("the payload is neither a number nor an object")
    if row.keys() <= {"unique_id", "ds"}:
        raise InputError("the payload has no value")
    if "column" in said and "y" in row:
        row[said["column"]] = row.pop("y")
    if "unique_id" in said:
        row["unique_id"] = said["unique_id"]
    if config.epoch is not None and "ds" in row:
        row["ds"] = _from_epoch(row["ds"], config.epoch)
    return row


def _rename(content: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    names = {"unique_id": "unique_id", "ds": "ds"} | dict(columns)
    row = {name: content[key] for name, key in names.items() if key in content}
    if any(name not in ("unique_id", "ds") for name in columns):
        return row
    return {**{key: value for key, value in content.items() if key not in names.values()}, **row}


def _from_epoch(value: Any, unit: str) -> Any:  # noqa: ANN401
    """Return a number since 1970 as text; anything else as it is, for the rules to refuse."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return value
    try:
        return pd.Timestamp(value, unit=unit, tz="UTC").round("us").isoformat()
    except (ValueError, OverflowError):
        return value
