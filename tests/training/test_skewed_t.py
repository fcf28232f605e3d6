"""Hansen's skewed t: against other implementations, against its definition, and far out."""

import math

import numpy as np
import pytest
from arch.univariate import Normal, SkewStudent, StudentsT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from scipy.stats import t as student_t

from training.skewed_t import SERIES_BELOW, FloatArray, SkewedT

R = np.linspace(-9.0, 9.0, 37)
P = np.array([1e-6, 0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99, 1 - 1e-6])


def skewed_t(location: float = 0.0, scale: float = 1.0, tail: float = 0.0, skew: float = 0.0) -> SkewedT:
    return SkewedT(*(np.array(value) for value in (location, scale, tail, skew)))


@pytest.mark.parametrize("tail", [0.48, 0.25, 0.12, 0.01])
@pytest.mark.parametrize("skew", [-0.7, -0.1, 0.0, 0.4])
def test_it_is_the_one_of_arch(tail: float, skew: float) -> None:
    ours, theirs, shape = skewed_t(0.3, 1.7, tail, skew), SkewStudent(), np.array([1 / tail, skew])
    log_density = theirs.loglikelihood(shape, R - 0.3, np.full(len(R), 1.7**2), individual=True)
    np.testing.assert_allclose(ours.log_density(R), log_density, rtol=1e-10)
    np.testing.assert_allclose(ours.cdf(R), theirs.cdf((R - 0.3) / 1.7, shape), rtol=1e-9)
    np.testing.assert_allclose(ours.quantile(P), 0.3 + 1.7 * theirs.ppf(P, shape), rtol=1e-9)


@pytest.mark.parametrize("tail", [0.48, 0.2, SERIES_BELOW, SERIES_BELOW * 0.999, 0.0025])
def test_without_skew_it_is_the_standardised_t_of_arch_and_of_scipy(tail: float) -> None:
    ours, theirs = skewed_t(0.3, 1.7, tail), StudentsT()
    shape = np.array([1 / tail])
    log_density = theirs.loglikelihood(shape, R - 0.3, np.full(len(R), 1.7**2), individual=True)
    np.testing.assert_allclose(ours.log_density(R), log_density, rtol=1e-10)
    np.testing.assert_allclose(ours.cdf(R), theirs.cdf((R - 0.3) / 1.7, shape), rtol=1e-9)
    np.testing.assert_allclose(ours.quantile(P), 0.3 + 1.7 * theirs.ppf(P, shape), rtol=1e-9)
    plain = student_t(1 / tail, 0.3, 1.7 * math.sqrt(1 - 2 * tail))
    np.testing.assert_allclose(ours.log_density(R), plain.logpdf(R), rtol=1e-10)


@pytest.mark.parametrize("tail", [0.0, 1e-300, 1e-21, 1e-19, 1e-14])
def test_without_a_tail_it_is_the_normal(tail: float) -> None:
    ours = skewed_t(-0.2, 2.0, tail)
    theirs = Normal().loglikelihood(np.empty(0), R + 0.2, np.full(len(R), 4.0), individual=True)
    np.testing.assert_allclose(ours.log_density(R), theirs, rtol=1e-12)
    np.testing.assert_allclose(ours.cdf(R), norm.cdf(R, -0.2, 2.0), rtol=1e-10)
    np.testing.assert_allclose(ours.quantile(P), norm.ppf(P, -0.2, 2.0), rtol=1e-10)


@pytest.mark.parametrize("tail", [0.0, 1e-12, 1e-6, 0.0199, 0.0201, 0.1, 0.3, 0.45])
@pytest.mark.parametrize("skew", [-0.95, -0.3, 0.0, 0.6])
def test_it_has_the_mean_and_the_standard_deviation_it_says(tail: float, skew: float) -> None:
    density = skewed_t(1.0, 3.0, tail, skew)

    def moment(power: int) -> float:
        # Over probabilities and not over values: a tail of 0.45 reaches further than any grid of values.
        return float(quad(lambda p: float(density.quantile(p)) ** power, 0, 1, limit=2000, epsabs=1e-7)[0])

    assert moment(1) == pytest.approx(1.0, abs=1e-3)
    if tail < 0.4:  # the integral of the squares converges too slowly beyond
        assert moment(2) == pytest.approx(10.0, rel=1e-2)
    mass = quad(lambda r: math.exp(density.log_density(r)), -np.inf, np.inf, points=None, limit=500)[0]
    assert mass == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("tail", [0.0, 1e-8, 0.01, 0.2])
@pytest.mark.parametrize("skew", [-0.3, 0.0, 0.5])
def test_the_density_is_the_slope_of_the_distribution(tail: float, skew: float) -> None:
    density, step = skewed_t(0.1, 1.3, tail, skew), 1e-5
    r = np.array([-4.0, -1.0, -0.2, 0.15, 1.0, 4.0])
    slope = (density.cdf(r + step) - density.cdf(r - step)) / (2 * step)
    np.testing.assert_allclose(np.exp(density.log_density(r)), slope, rtol=1e-5)


def test_the_far_tails_are_exact() -> None:
    normal = skewed_t()
    assert float(normal.log_density(-1000.0)) == pytest.approx(-500000.0 - 0.5 * math.log(2 * math.pi), rel=1e-15)
    assert float(normal.cdf(-37.0)) == pytest.approx(norm.cdf(-37.0), rel=1e-10)
    # Far out a t of 4 degrees, density 3/8 (1 + x^2 / 4)^(-5/2), is 12 / x^5, and its distribution 3 / x^4.
    heavy = skewed_t(tail=0.25)
    x = 1e12 * math.sqrt(2)
    assert float(heavy.log_density(-1e12)) == pytest.approx(math.log(12 * math.sqrt(2) / x**5), rel=1e-12)
    assert float(heavy.cdf(-1e12)) == pytest.approx(3 / x**4, rel=1e-12)
    assert float(heavy.quantile(3 / x**4)) == pytest.approx(-1e12, rel=1e-9)


@given(
    tail=st.one_of(st.just(0.0), st.floats(1e-25, 0.49)),
    skew=st.floats(-0.95, 0.95),
    p=st.one_of(st.floats(1e-12, 1 - 1e-9), st.floats(1e-200, 1e-12)),
)
@settings(max_examples=300, deadline=None)
def test_the_quantile_inverts_the_distribution(tail: float, skew: float, p: float) -> None:
    density = skewed_t(0.5, 2.5, tail, skew)
    assert float(density.cdf(density.quantile(p))) == pytest.approx(p, rel=1e-7)


@given(tail=st.floats(0.0, 0.49), skew=st.floats(-0.95, 0.95), r=st.floats(-50, 50))
@settings(max_examples=100, deadline=None)
def test_turning_the_skew_mirrors_the_density(tail: float, skew: float, r: float) -> None:
    one, other = skewed_t(tail=tail, skew=skew), skewed_t(tail=tail, skew=-skew)
    assert float(one.log_density(r)) == pytest.approx(float(other.log_density(-r)), rel=1e-12)
    assert float(one.cdf(r)) == pytest.approx(1 - float(other.cdf(-r)), abs=1e-12)


def test_the_ends_are_infinite_and_nonsense_is_nan() -> None:
    for density in (skewed_t(), skewed_t(tail=0.2, skew=-0.3)):
        np.testing.assert_array_equal(density.quantile(np.array([0.0, 1.0])), [-np.inf, np.inf])
        np.testing.assert_array_equal(density.cdf(np.array([-np.inf, np.inf])), [0.0, 1.0])
        assert np.isnan(density.quantile(np.array([-0.1, 1.1, np.nan]))).all()
        assert np.isnan(density.cdf(np.nan))
        assert np.isnan(density.log_density(np.nan))


def test_many_densities_at_many_probabilities() -> None:
    fields: tuple[FloatArray, ...] = (
        np.array([0.0, 1.0, 2.0]),
        np.array([1.0, 2.0, np.nan]),
        np.array([0.0, 0.1, 0.2]),
        np.array([0.0, -0.2, 0.3]),
    )
    found_KQ = SkewedT(*(field[:, None] for field in fields)).quantile(P)
    assert found_KQ.shape == (3, len(P))
    np.testing.assert_array_equal(found_KQ[1], skewed_t(1.0, 2.0, 0.1, -0.2).quantile(P))
    assert np.isnan(found_KQ[2]).all()
    assert SkewedT(*fields).log_density(np.zeros(3)).shape == (3,)
