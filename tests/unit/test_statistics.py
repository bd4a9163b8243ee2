"""Means over crossed training runs and prompts: exact small cases, calibration, and what a design can find."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from captune.errors import DataError
from captune.evaluate import statistics
from captune.evaluate.statistics import Components, Design, Estimate, Parts, Table
from captune.types import FEWEST_PROMPTS

NOISE = 0.03**2


def table_of(values: np.ndarray) -> Table:
    """values (training runs, prompts, pairs)."""
    return Table(values.sum(axis=2), (values**2).sum(axis=2), np.full(values.shape[:2], float(values.shape[2])))


def estimated(table: Table, resamples: int = 2000, seed: int = 0) -> Estimate:
    return statistics.estimate(table, resamples, 0.95, np.random.default_rng(seed))


def drawn(rng: np.random.Generator, truth: Components, design: Design, difference: float = 0.0) -> Table:
    runs, prompts, seeds = design.training_runs, design.prompts, design.seeds
    effects = (
        rng.normal(0, truth.run**0.5, (runs, 1, 1))
        + rng.normal(0, truth.prompt**0.5, (1, prompts, 1))
        + rng.normal(0, truth.interaction**0.5, (runs, prompts, 1))
    )
    return table_of(difference + effects + rng.normal(0, truth.pair**0.5, (runs, prompts, seeds)))


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Of runs, prompts and cells, by the textbook's analysis of variance, for one value per cell."""
    runs, prompts = values.shape
    by_run, by_prompt = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_run[:, None] - by_prompt + values.mean()
    return (
        prompts * by_run.var(ddof=1),
        runs * by_prompt.var(ddof=1),
        (rest**2).sum() / ((runs - 1) * (prompts - 1)),
    )


def test_the_bootstraps_parts_are_those_of_the_analysis_of_variance() -> None:
    values = np.random.default_rng(1).normal(0, 1, (4, 9)) + np.arange(4)[:, None]
    parts = statistics.resampled(table_of(values[:, :, None]), 50_000, np.random.default_rng(0))
    expected = [mean_square / values.size for mean_square in mean_squares(values)]
    assert [parts.runs, parts.prompts, parts.cells] == pytest.approx(expected, rel=0.03)


def test_one_training_run_is_students_t_over_prompts() -> None:
    values = np.random.default_rng(2).normal(0.1, 1, 20)
    found = estimated(table_of(values[None, :, None]), resamples=200_000)
    known = stats.ttest_1samp(values, 0)
    assert found.degrees == 19
    assert found.p_value == pytest.approx(known.pvalue, rel=0.03)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()), rel=0.03)


def test_where_runs_decide_the_interval_is_students_t_over_runs() -> None:
    runs = np.array([0.2, 0.5, 0.9])
    values = runs[:, None, None] + np.random.default_rng(3).normal(0, 1e-4, (3, 25, 4))
    found = estimated(table_of(values), resamples=100_000)
    low, high = stats.ttest_1samp(runs, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)


def test_two_training_runs_count_as_they_are() -> None:
    """One degree of freedom tells nothing: the claim is about these files, and only prompts are resampled."""
    values = np.random.default_rng(4).normal(0, 0.1, (1, 12, 1)) + np.array([0.1, 0.9])[:, None, None]
    found = estimated(table_of(values), resamples=100_000)
    low, high = stats.ttest_1samp(values.mean(axis=0).ravel(), 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)


def test_no_effects_leave_the_degrees_of_freedom_of_the_cells() -> None:
    assert statistics.combined(Parts(0.2, 0.3, 1.0), 3, 25) == (1.0, 48.0)


def test_the_noise_of_cells_is_counted_once() -> None:
    error, _ = statistics.combined(Parts(5.0, 3.0, 1.0), 3, 25)
    assert error == pytest.approx(math.sqrt(7))


@given(
    st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.integers(3, 10), st.integers(2, 40), st.floats(0.1, 10)
)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_degrees_of_freedom_lie_between_the_fewest_and_the_cells(
    runs: float, prompts: float, cells: float, rows: int, columns: int, scale: float
) -> None:
    error, degrees = statistics.combined(Parts(runs, prompts, cells), rows, columns)
    assert min(rows, columns) - 1 - 1e-9 <= degrees <= (rows - 1) * (columns - 1) + 1e-9
    scaled = statistics.combined(Parts(runs * scale, prompts * scale, cells * scale), rows, columns)
    assert scaled[0] == pytest.approx(error * math.sqrt(scale), abs=1e-12)
    if min(runs, prompts, cells) > 1e-3:
        assert scaled[1] == pytest.approx(degrees, rel=1e-6)


@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=18, max_size=18))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_the_p_value_says_what_the_interval_says(values: list[float]) -> None:
    found = estimated(table_of(np.array(values).reshape(3, 6, 1)), resamples=200)
    if abs(found.p_value - 0.05) > 1e-9:
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    turned = estimated(table_of(-np.array(values).reshape(3, 6, 1)), resamples=200)
    assert (turned.mean, turned.p_value) == (-found.mean, found.p_value)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-15)


@pytest.mark.parametrize("design", [Design(3, 25, 4), Design(5, 25, 4), Design(3, 100, 2)], ids=str)
def test_false_positives_stay_near_one_in_twenty_whatever_the_effects(design: Design) -> None:
    """By the chi-squared repetitions of a design, so without the noise of single studies; 0.1 is 5 pictures' deviations."""
    rates = [
        statistics.found_in(Components(run**2, prompt**2, interaction**2, NOISE), design, 0.0)
        for run in (0.0, 0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.1)
        for prompt in (0.0, 0.004, 0.01, 0.02, 0.1)
        for interaction in (0.0, 0.01)
    ]
    assert min(rates) >= 0.02 and max(rates) <= 0.075
    assert 0.035 <= np.mean(rates) <= 0.06


@pytest.mark.parametrize(
    ("run", "prompt"),
    [(0.0, 0.02), (0.004, 0.004), (0.004, 0.02), (0.006, 0.01), (0.02, 0.01), (0.1, 0.02)],
    ids=str,
)
def test_equal_arms_are_called_different_about_one_time_in_twenty(run: float, prompt: float) -> None:
    rng, design = np.random.default_rng([int(1e4 * run), int(1e4 * prompt)]), Design(3, 25, 4)
    truth = Components(run**2, prompt**2, 0.003**2, NOISE)
    wrong = sum(estimated(drawn(rng, truth, design), 300, i).p_value < 0.05 for i in range(300)) / 300
    assert 0.01 <= wrong <= 0.09  # 2.4 to 6.7 % in the long run; 300 studies have a standard error of 1.3 %


def test_resampling_prompts_alone_would_find_too_much() -> None:
    """Why runs are resampled too: the same equal arms, with the runs' own effects taken for the captions'."""
    rng, design = np.random.default_rng(5), Design(3, 25, 4)
    truth = Components(0.006**2, 0.004**2, 0.0, NOISE)
    wrong = 0
    for i in range(200):
        table = drawn(rng, truth, design)
        pooled = Table(*(part.sum(axis=0, keepdims=True) for part in (table.sums, table.squares, table.counts)))
        wrong += estimated(pooled, 300, i).p_value < 0.05
    assert wrong / 200 > 0.2


@pytest.mark.parametrize("design", [Design(3, 25, 4), Design(5, 40, 2)], ids=str)
def test_the_detectable_difference_is_found_in_four_of_five_studies(design: Design) -> None:
    rng, truth = np.random.default_rng(6), Components(0.004**2, 0.01**2, 0.0, NOISE)
    difference = statistics.detectable(truth, design)
    found = sum(estimated(drawn(rng, truth, design, difference), 300, i).p_value < 0.05 for i in range(200)) / 200
    assert 0.68 <= found <= 0.9


def test_a_table_with_missing_cells_uses_what_is_there() -> None:
    rows = [(run, prompt, 0.5 + 0.01 * run) for run in range(3) for prompt in range(8) if (run, prompt) != (2, 7)]
    table = statistics.tabulate(rows)
    assert table.counts.sum() == 23 and np.isnan(table.means[2, 7])
    found = estimated(table)
    assert found.mean == pytest.approx(sum(value for *_, value in rows) / 23)
    assert found.low < found.mean < found.high


def test_the_order_of_rows_changes_no_digit() -> None:
    rng = np.random.default_rng(7)
    rows = [(int(run), int(prompt), float(rng.normal())) for run in range(3) for prompt in range(5) for _ in range(4)]
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    first, second = statistics.tabulate(rows), statistics.tabulate(shuffled)
    assert np.array_equal(first.sums, second.sums) and np.array_equal(first.squares, second.squares)


def test_nothing_varies_nothing_is_doubted() -> None:
    same = estimated(table_of(np.zeros((3, 10, 2))))
    assert (same.low, same.high, same.p_value) == (0.0, 0.0, 1.0)
    shifted = estimated(table_of(np.full((3, 10, 2), 0.25)))
    assert (shifted.low, shifted.high, shifted.p_value) == (0.25, 0.25, 0.0)


def test_one_prompt_has_no_interval() -> None:
    found = estimated(table_of(np.array([[[0.1, 0.5]], [[0.2, 0.4]], [[0.3, 0.3]]])))
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert found.p_value == 1.0


def test_agreeing_shares_have_the_binomial_bound() -> None:
    none = statistics.agreed_share(0.0, 0.0, 16, 0.95)
    assert (none.low, none.high) == (0.0, pytest.approx(0.206, abs=1e-3))  # Clopper-Pearson for 0 of 16
    always = statistics.agreed_share(1.0, 0.0, 16, 0.95)
    assert (always.low, always.high) == (pytest.approx(0.794, abs=1e-3), 1.0)


@pytest.mark.parametrize(("prompts", "told"), [(5, False), (6, True)])
def test_agreeing_differences_are_told_by_the_sign_test(prompts: int, told: bool) -> None:
    found = statistics.agreed_share(1.0, -1.0, prompts, 0.95)
    assert found.p_value == pytest.approx(stats.binomtest(prompts, prompts).pvalue)
    assert (found.low > 0) == told


def test_holm_is_the_textbooks() -> None:
    # Holm's steps by hand: 4 x 0.01, 3 x 0.02 = 0.06, 2 x 0.03 = 0.06, then 0.04 held up to 0.06.
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_detectable_difference_is_that_of_the_noncentral_t() -> None:
    least = statistics.minimal_detectable_difference(0.5, 24, 0.95)
    assert 1 - stats.nct.cdf(stats.t.ppf(0.975, 24), 24, least / 0.5) == pytest.approx(0.8)


def test_components_are_found_again() -> None:
    rng, truth = np.random.default_rng(8), Components(0.02**2, 0.015**2, 0.01**2, NOISE)
    found = [statistics.components(drawn(rng, truth, Design(6, 60, 4))) for _ in range(60)]
    for name in ("run", "prompt", "interaction", "pair"):
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(getattr(truth, name), rel=0.2)


def test_components_of_one_run_or_one_seed_are_what_can_be_told() -> None:
    rng, truth = np.random.default_rng(9), Components(0.0, 0.02**2, 0.0, NOISE)
    one_run = statistics.components(drawn(rng, truth, Design(1, 400, 4)))
    assert one_run.run == one_run.interaction == 0.0
    assert one_run.prompt == pytest.approx(truth.prompt, rel=0.3) and one_run.pair == pytest.approx(NOISE, rel=0.1)
    one_seed = statistics.components(drawn(rng, truth, Design(3, 400, 1)))
    assert one_seed.interaction == pytest.approx(0.0, abs=1e-12)
    assert one_seed.pair == pytest.approx(NOISE, rel=0.2)


def test_more_of_anything_finds_smaller_differences() -> None:
    truth = Components(0.004**2, 0.01**2, 0.003**2, NOISE)
    least = statistics.detectable(truth, Design(3, 25, 4))
    assert statistics.detectable(truth, Design(3, 50, 4)) < least
    assert statistics.detectable(truth, Design(5, 25, 4)) < least
    assert statistics.detectable(truth, Design(3, 25, 8)) < least
    assert statistics.found_in(truth, Design(3, 25, 4), least) == pytest.approx(0.8, abs=1e-3)
    assert math.isinf(statistics.detectable(truth, Design(3, 5, 4)))  # no difference is claimed at all


def test_the_design_needed_is_the_smallest_that_finds_the_difference() -> None:
    truth = Components(0.002**2, 0.01**2, 0.0, NOISE)
    found = statistics.needed(truth, 0.01)
    assert found and found[0].training_runs == 3
    for design in found:
        assert design.prompts >= FEWEST_PROMPTS
        smaller = replace(design, prompts=design.prompts - 1)
        assert statistics.detectable(truth, design) <= 0.01 < statistics.detectable(truth, smaller)
    assert statistics.needed(Components(1.0, 0.0, 0.0, 0.0), 0.01) == []  # no number of prompts makes up for the runs


def test_one_prompt_has_no_components() -> None:
    with pytest.raises(DataError, match=r"from 1 prompt\(s\) scored in all training runs; two or more"):
        statistics.components(table_of(np.zeros((3, 1, 4))))
