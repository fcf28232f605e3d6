"""The bucket: what is saved, what is owed, and how long it takes."""

import sys

import pytest

from service.rate_limit import BYTES_OF_A_UNIT, SAVED_SECONDS, TokenBucket


def test_ten_seconds_worth_may_be_used_at_once_and_then_the_rate_holds() -> None:
    bucket = TokenBucket(5.0)
    assert [bucket.take(100.0) for _ in range(50)] == [0.0] * 50
    assert bucket.take(100.0) == pytest.approx(0.2)
    assert bucket.take(100.2) == 0.0
    assert bucket.take(100.3) == pytest.approx(0.1)


def test_no_more_is_saved_than_that_however_long_nothing_is_asked() -> None:
    bucket = TokenBucket(2.0)
    bucket.take(0.0)
    later = 1e6
    taken = sum(bucket.take(later) == 0.0 for _ in range(100))
    assert taken == 2.0 * SAVED_SECONDS


def test_a_large_body_is_let_in_and_paid_for_by_those_after_it() -> None:
    bucket = TokenBucket(1.0)
    assert bucket.take(0.0) == 0.0
    bucket.owe(29 * BYTES_OF_A_UNIT)
    assert bucket.take(0.0) == pytest.approx(21.0)
    assert bucket.take(21.0) == 0.0


def test_one_request_is_always_possible_however_low_the_rate() -> None:
    bucket = TokenBucket(0.01)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(100.0)
    assert bucket.take(100.0) == 0.0


def test_a_bucket_has_a_fixed_size() -> None:
    """There is one for each key in the file, and for nobody else."""
    bucket = TokenBucket(1.0)
    assert not hasattr(bucket, "__dict__")
    assert sys.getsizeof(bucket) < 100
