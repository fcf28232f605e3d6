"""Batched equals single, nobody's input touches another's answer, and nobody waits for the large ones."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forecasting.calendar import parse_freq
from forecasting.covariates import Covariates
from forecasting.errors import InputError
from forecasting.forecaster import Forecaster
from forecasting.spec import MLPSpec, RecurrentSpec
from service import batcher as batching
from service.batcher import Batcher
from service.model_slot import LoadedModel
from service.problems import OVERLOADED, ProblemError
from tests.service.conftest import COVARIATES, build_forecaster

FloatArray = NDArray[np.float64]
Request = tuple[LoadedModel, FloatArray, Covariates | None]


def load(forecaster: Forecaster) -> LoadedModel:
    spec = forecaster.spec
    calendar = parse_freq(spec.freq)
    return LoadedModel(spec.name, "1", "champion", "", datetime.now(UTC), forecaster, calendar, spec.name, "y")


MODELS = [
    load(build_forecaster("pump", "h", RecurrentSpec(kind="lstm", input_size=24, hidden_size=8))),
    load(build_forecaster("price", "D", MLPSpec(input_size=6, hidden_size=8), transform="log_return")),
    load(build_forecaster("boiler", "h", MLPSpec(input_size=6, hidden_size=8), covariates=COVARIATES)),
]


class Counting:
    """A forecaster that notes the windows of every pass, and refuses those that begin with an ill number."""

    ILL = 13.0

    def __init__(self, inner: Forecaster) -> None:
        self.inner = inner
        self.passes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict(self, y_BL: FloatArray, covariates: Covariates | None = None) -> FloatArray:
        self.passes.append(len(y_BL))
        if (y_BL[:, 0] == self.ILL).any():
            raise InputError("ill luck")
        return self.inner.predict(y_BL, covariates)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1, "inference", torch.set_num_threads, (1,)) as threads:
        yield threads


def quiet(*_: object) -> None:
    """Listen to no pass."""


def counted() -> tuple[LoadedModel, Counting]:
    forecaster = Counting(MODELS[0].forecaster)
    return load(forecaster), forecaster  # type: ignore[arg-type]


def histories(n: int, first: float = 0.0) -> FloatArray:
    return first + np.arange(24.0)[None, :] + np.arange(n)[:, None]


def ask_all(batcher: Batcher, requests: Sequence[Request]) -> list[FloatArray | BaseException]:
    """Ask for everything in one turn of an event loop."""

    async def gather() -> list[FloatArray | BaseException]:
        return await asyncio.gather(*(batcher.predict(*one) for one in requests), return_exceptions=True)

    return asyncio.run(gather())


@st.composite
def requests(draw: st.DrawFn) -> Request:
    model = draw(st.sampled_from(MODELS))
    n, length = draw(st.integers(1, 5)), model.spec.input_size
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    y_BL = 50 + generator.normal(size=(n, length)).cumsum(axis=1)
    if draw(st.booleans()):
        y_BL[generator.random(y_BL.shape) < 0.3] = np.nan
        y_BL[:, -1] = 50.0
    if not model.takes_covariates:
        return model, y_BL, None
    cutoffs = pd.DatetimeIndex(pd.Timestamp("2024-01-01") + generator.integers(0, 99, n) * pd.Timedelta(hours=1))
    horizon = model.spec.horizon
    statics = {"unique_id": ["boiler-1"] * n, "site": list(generator.choice(["north", "elsewhere"], n))}
    told = Covariates(
        cutoffs.as_unit("us"),
        generator.normal(size=(n, length, 2)),
        generator.normal(size=(n, length + horizon, 1)),
        statics,
    )
    return model, y_BL, told


@settings(max_examples=25, deadline=None)
@given(asked=st.lists(requests(), min_size=1, max_size=8), rounds=st.booleans())
def test_what_is_forecast_together_is_what_each_would_be_told_alone(asked: list[Request], rounds: bool) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.MonkeyPatch.context() as patch:
        if rounds:
            patch.setattr(batching, "INLINE_SECONDS", -1.0)
            patch.setattr(batching, "UNKNOWN_ROUND", 3)
            patch.setattr(batching, "ROUND_SECONDS", 0.0005)
        batcher = Batcher(executor, 4096, quiet)
        together = ask_all(batcher, asked)
    for (model, y_BL, told), found in zip(asked, together, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, model.forecaster.predict(y_BL, told), rtol=1e-6, atol=1e-6)
    assert batcher.waiting == 0


def test_what_arrives_together_goes_through_the_network_together(executor: Executor) -> None:
    model, forecaster = counted()
    ask_all(Batcher(executor, 4096, quiet), [(model, histories(n), None) for n in (1, 2, 3)])
    assert forecaster.passes == [6]


@pytest.mark.parametrize(("longest", "first"), [(60.0, 10), (0.0, 1)])
def test_as_long_as_every_turn_brings_more_the_pass_waits_but_not_for_ever(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, longest: float, first: int
) -> None:
    monkeypatch.setattr(batching, "GATHER_SECONDS", longest)
    model, forecaster = counted()

    async def come_one_by_one() -> None:
        batcher = Batcher(executor, 4096, quiet)
        coming = []
        for i in range(10):
            coming.append(asyncio.ensure_future(batcher.predict(model, histories(1, float(i)), None)))
            await asyncio.sleep(0)
        await asyncio.gather(*coming)

    asyncio.run(come_one_by_one())
    assert (forecaster.passes[0], sum(forecaster.passes)) == (first, 10)


def test_a_request_that_cannot_be_forecast_fails_alone(executor: Executor) -> None:
    model, _ = counted()
    asked: list[Request] = [(model, histories(1, first), None) for first in (0.0, 1.0, Counting.ILL, 2.0, 3.0)]
    found = ask_all(Batcher(executor, 4096, quiet), asked)
    assert [isinstance(one, InputError) for one in found] == [False, False, True, False, False]


def test_windows_whose_forecast_is_not_finite_take_no_other_with_them(executor: Executor) -> None:
    huge = histories(1)
    huge[0, 3] = 1e300
    found = ask_all(Batcher(executor, 4096, quiet), [(MODELS[0], huge, None), (MODELS[0], histories(1), None)])
    assert [bool(np.isfinite(one).all()) for one in found] == [False, True]  # type: ignore[call-overload]


def test_what_nobody_waits_for_any_more_never_reaches_the_network(executor: Executor) -> None:
    model, forecaster = counted()
    batcher = Batcher(executor, 4096, quiet)

    async def ask() -> None:
        left = asyncio.create_task(batcher.predict(model, histories(5), None))
        stays = asyncio.create_task(batcher.predict(model, histories(2), None))
        asyncio.get_running_loop().call_soon(left.cancel)
        await stays
        assert left.cancelled()

    asyncio.run(ask())
    assert forecaster.passes == [2]
    assert batcher.waiting == 0


def test_more_than_may_wait_is_refused_at_once_and_a_request_alone_never_is(executor: Executor) -> None:
    batcher = Batcher(executor, 10, quiet)
    first, second, third = ask_all(batcher, [(MODELS[0], histories(n), None) for n in (20, 5, 1)])
    assert isinstance(first, np.ndarray)
    assert isinstance(second, ProblemError)
    assert second.kind is OVERLOADED
    assert second.headers == {"retry-after": "1"}
    assert isinstance(third, ProblemError)


def test_a_small_request_waits_for_a_round_of_a_large_one_and_not_for_all_of_it(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_SECONDS", -1.0)
    monkeypatch.setattr(batching, "UNKNOWN_ROUND", 10)
    monkeypatch.setattr(batching, "ROUND_SECONDS", 0.002)
    batcher, finished = Batcher(executor, 100_000, quiet), []

    async def ask(name: str, n: int) -> None:
        await batcher.predict(MODELS[0], histories(n), None)
        finished.append(name)

    async def all_of_them() -> None:
        large = asyncio.create_task(ask("large", 20_000))
        await asyncio.sleep(0.005)
        await asyncio.gather(ask("small", 1), ask("middle", 30))
        assert not large.done()
        await large

    asyncio.run(all_of_them())
    assert set(finished[:2]) == {"small", "middle"}


def test_a_large_request_goes_on_however_many_small_ones_come(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_SECONDS", -1.0)
    monkeypatch.setattr(batching, "UNKNOWN_ROUND", 2)
    monkeypatch.setattr(batching, "ROUND_SECONDS", 0.0)
    batcher = Batcher(executor, 100_000, quiet)

    async def ask() -> None:
        large = asyncio.create_task(batcher.predict(MODELS[0], histories(20), None))
        while not large.done():
            await asyncio.wait(
                [large, *(asyncio.create_task(batcher.predict(MODELS[0], histories(1), None)) for _ in range(4))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        assert len(large.result()) == 20

    asyncio.run(asyncio.wait_for(ask(), 20))


class _Broken(Executor):
    def submit(self, *arguments: Any, **options: Any) -> "Future[Any]":
        raise RuntimeError("cannot schedule new futures after shutdown")


def test_without_a_thread_to_work_in_a_request_fails_and_does_not_hang() -> None:
    (found,) = ask_all(Batcher(_Broken(), 4096, quiet), [(MODELS[0], histories(1), None)])
    assert isinstance(found, RuntimeError)
