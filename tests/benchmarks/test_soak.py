"""Under full load over a real socket models are swapped, and too much is turned away, and no request fails."""

from argparse import Namespace

import pytest

from benchmarks.soak import OVERLOAD, SWAP, run_cases


@pytest.mark.slow
def test_no_request_fails_while_the_alias_moves_or_more_is_asked_than_can_be_given() -> None:
    tallies = dict(run_cases(Namespace(quick=True, seconds=1.5, connections=8)))
    swapped, overloaded = tallies[SWAP], tallies[OVERLOAD]
    assert swapped.failed == overloaded.failed == 0
    assert set(swapped.statuses) == {200}
    assert swapped.mixed == overloaded.mixed == 0
    assert swapped.moves >= 3
    assert set(swapped.versions) == {"1", "2"}
    assert overloaded.statuses[200] > 0
    assert overloaded.statuses[503] > 0
