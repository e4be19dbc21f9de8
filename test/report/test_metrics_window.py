import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.report import window

SECONDS = st.floats(1e-4, 1e3)


def steps(seconds, first_iter=1):
    return window.samples(
        [(first_iter + index, first_iter + index, 1, step_s, step_s / 2) for index, step_s in enumerate(seconds)]
    )


@pytest.mark.parametrize(
    ('iterations', 'warm_up'), [(1, 5), (5, 5), (50, 5), (51, 6), (400, 40), (1000, 100), (1001, 100), (90000, 100)]
)
def test_warm_up_is_a_tenth_but_at_least_5_and_at_most_100(iterations, warm_up):
    assert window.warm_up_iters(iterations) == warm_up


@settings(deadline=None)
@given(first_iter=st.integers(1, 100_000), iterations=st.integers(1, 3000))
def test_the_window_is_everything_behind_the_warm_up(first_iter, iterations):
    last_iter = first_iter + iterations - 1
    kept = window.after_warm_up(steps([1.0] * iterations, first_iter), first_iter, last_iter)
    warm_until = first_iter - 1 + window.warm_up_iters(iterations)
    assert kept['first_iter'].tolist() == list(range(warm_until + 1, last_iter + 1))


def test_a_mean_that_reaches_into_the_warm_up_is_left_out():
    means = window.samples([(last - 9, last, 10, 1.0, 0.5) for last in (10, 20, 30)])
    assert window.after_warm_up(means, 1, 30).tolist() == means[1:].tolist()
    assert window.after_warm_up(means, 1, 110).tolist() == means[2:].tolist()


@settings(deadline=None)
@given(seconds=st.lists(SECONDS, min_size=1, max_size=200), batch=st.integers(1, 64), order=st.randoms())
def test_figures_of_any_window(seconds, batch, order):
    timing = window.timing(steps(seconds), batch)
    assert timing.iterations == len(seconds)
    assert timing.fps_images_per_s == pytest.approx(batch * len(seconds) / sum(seconds))
    assert timing.fps_images_per_s * timing.step_time_mean_s == pytest.approx(batch)
    slack = 1 + 1e-12  # interpolating between equal numbers may round
    assert min(seconds) <= timing.step_time_p50_s * slack
    assert timing.step_time_p50_s <= timing.step_time_p95_s * slack
    assert timing.step_time_p95_s <= max(seconds) * slack
    assert sum(value <= timing.step_time_p95_s * slack for value in seconds) >= 0.95 * (len(seconds) - 1)
    assert timing.data_time_mean_s == pytest.approx(timing.step_time_mean_s / 2)
    order.shuffle(seconds)
    again = window.timing(steps(seconds), batch)
    assert again.fps_images_per_s == pytest.approx(timing.fps_images_per_s)
    assert again.step_time_p95_s == timing.step_time_p95_s


@settings(deadline=None)
@given(means=st.lists(st.tuples(st.integers(1, 50), SECONDS), min_size=1, max_size=50), batch=st.integers(1, 64))
def test_means_count_by_the_iterations_they_stand_for(means, batch):
    at = 0
    samples = []
    for iterations, step_s in means:
        samples.append((at + 1, at + iterations, iterations, step_s, numpy.nan))
        at += iterations
    timing = window.timing(window.samples(samples), batch)
    spread = window.timing(steps(numpy.repeat([s for _, s in means], [n for n, _ in means]).tolist()), batch)
    assert timing.iterations == spread.iterations == at
    assert timing.fps_images_per_s == pytest.approx(spread.fps_images_per_s)
    assert timing.data_time_mean_s is None
