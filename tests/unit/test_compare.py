"""Arms are compared in pairs, and the sentences say no more than was found; calibration is in test_statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from captune.errors import DataError
from captune.evaluate import compare
from captune.evaluate.statistics import holm
from captune.recipe import EvaluateSection
from captune.types import BASE, BETTER, FEWEST_PROMPTS, NO_DIFFERENCE, WORSE, Comparison, CrossLoss, Interval, Score

SECTION = EvaluateSection()


def scores_of(
    arm: str, values: Sequence[Sequence[float]], metric: str = "clip_t", training_seed: int = 0
) -> list[Score]:
    """values[prompt][seed] as scores."""
    return [
        Score(metric, arm, f"{prompt:03d}-{seed}", float(value), "mini", prompt, training_seed)
        for prompt, row in enumerate(values)
        for seed, value in enumerate(row)
    ]


def only(scores: Sequence[Score], higher_is_better: bool = True) -> Comparison:
    metric = scores[0].metric
    (found,) = compare.compare(scores, SECTION, {metric: higher_is_better}, metric)
    return found


def study(
    rng: np.random.Generator, difference: float, runs: int = 3, prompts: int = 12, metric: str = "clip_t"
) -> list[Score]:
    """Two arms, trained `runs` times, two sampling seeds per prompt."""
    scores = []
    for seed in range(runs):
        ease = np.linspace(0.2, 0.3, prompts)[:, None]
        first = ease + difference + rng.normal(0, 0.01, (prompts, 2))
        second = ease + rng.normal(0, 0.01, (prompts, 2))
        scores += scores_of("one", first.tolist(), metric, seed) + scores_of("two", second.tolist(), metric, seed)
    return scores


def experiment(rng: np.random.Generator, prompts: int, seeds: int, difference: float, binary: bool) -> list[Score]:
    """Two arms on the same prompts and seeds: prompts differ in ease, and each suits one arm a little more."""
    ease = rng.normal(0.25, 0.03, (prompts, 1))
    suits = rng.normal(0, 0.01, (prompts, 1))
    shared = rng.normal(0, 0.02, (prompts, seeds))  # what the seed does to both arms alike
    first = ease + shared + suits + difference + rng.normal(0, 0.02, (prompts, seeds))
    second = ease + shared - suits + rng.normal(0, 0.02, (prompts, seeds))
    if binary:
        first, second = (first > 0.25).astype(float), (second > 0.25).astype(float)
    metric = "oracle_subject" if binary else "clip_t"
    return scores_of("one", first.tolist(), metric) + scores_of("two", second.tolist(), metric)


@pytest.mark.parametrize("binary", [False, True], ids=["cosines", "shares"])
@pytest.mark.parametrize(("prompts", "seeds"), [(8, 2), (24, 3)])
def test_equal_arms_are_called_different_about_one_time_in_twenty(prompts: int, seeds: int, binary: bool) -> None:
    rng = np.random.default_rng([prompts, seeds, binary])
    found = [only(experiment(rng, prompts, seeds, 0.0, binary)).better for _ in range(300)]
    wrong = sum(better is not None for better in found) / len(found)
    assert wrong <= 0.085  # 0.05 and not quite three standard errors of 300 experiments
    assert {"one", "two"} <= set(found) or wrong < 0.02  # neither arm is favoured by its place


def test_a_planted_difference_is_found() -> None:
    rng = np.random.default_rng(5)
    found = [only(experiment(rng, 24, 3, 0.03, False)).better for _ in range(100)]
    assert found.count("one") >= 95
    assert "two" not in found


def test_resampling_pictures_instead_of_prompts_would_find_too_much() -> None:
    """Why prompts are what is resampled: equal arms, every picture its own cluster."""
    rng, wrong = np.random.default_rng(6), 0
    for _ in range(100):
        suits = np.repeat(rng.normal(0, 0.02, 12), 8)
        scores = [
            Score("clip_t", arm, f"{i}", float(sign * s + rng.normal(0, 0.01)), "mini", i)
            for arm, sign in (("one", 1), ("two", -1))
            for i, s in enumerate(suits)
        ]
        wrong += only(scores).better is not None
    assert wrong / 100 > 0.2


def test_the_interval_covers_the_true_mean() -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(300):
        values = 0.3 + rng.normal(0, 0.03, (12, 1)) + rng.normal(0, 0.03, (12, 2))
        interval = compare.summarize(scores_of("one", values.tolist()), SECTION)["one"]["clip_t"]
        covered += interval.low <= 0.3 <= interval.high
    assert 0.91 <= covered / 300 <= 0.99


def test_training_runs_are_resampled_where_there_are_several() -> None:
    """Runs that differ by more than prompts do must widen the interval."""
    rng = np.random.default_rng(8)
    noise = rng.normal(0, 0.001, (24, 1))
    runs = [0.0, 0.03, -0.02, 0.02]
    several = [
        s
        for seed, shift in enumerate(runs)
        for arm, sign in (("one", 1), ("two", -1))
        for s in scores_of(arm, (0.25 + sign * (shift + noise)).tolist(), training_seed=seed)
    ]
    found = only(several)
    assert found.verdict == NO_DIFFERENCE and found.better is None
    assert found.high - found.low > 0.03
    assert (found.pairs, found.prompts, found.training_runs) == (96, 24, 4)


def test_the_base_is_paired_with_every_training_run() -> None:
    values = [[0.2], [0.3], [0.4], [0.3], [0.2], [0.1]]
    better = [[v + 0.1 for v in row] for row in values]
    scores = scores_of("base", values)
    for seed in (3, 4):
        scores += scores_of("human", better, training_seed=seed)
    found = only(scores)
    assert (found.first, found.second, found.better) == ("human", "base", "human")
    assert found.difference == pytest.approx(0.1)
    assert (found.pairs, found.prompts, found.training_runs) == (12, 6, 2)


def test_arms_of_different_training_seeds_are_not_compared_silently() -> None:
    scores = scores_of("one", [[0.1]] * 6, training_seed=0) + scores_of("two", [[0.1]] * 6, training_seed=1)
    with pytest.raises(DataError, match="'one' and 'two' have no training seed in common, .*study.training_seeds"):
        compare.compare(scores, SECTION, {"clip_t": True}, "clip_t")


def test_the_same_scores_give_the_same_results_in_any_order() -> None:
    scores = study(np.random.default_rng(1), 0.004)
    order = np.random.default_rng(2).permutation(len(scores))
    shuffled = [scores[i] for i in order]
    assert compare.summarize(scores, SECTION) == compare.summarize(shuffled, SECTION)
    one, two = only(scores), only(shuffled)
    assert abs(one.difference) == abs(two.difference) and one.p_value == two.p_value
    assert (one.better, one.sentence.replace("\N{MINUS SIGN}", "+")) == (
        two.better,
        two.sentence.replace("\N{MINUS SIGN}", "+"),
    )


def test_swapped_arms_swap_the_sign_and_nothing_else() -> None:
    scores = study(np.random.default_rng(1), 0.02)
    there, back = only(scores), only(list(reversed(scores)))
    assert (there.first, back.first) == ("one", "two")
    assert (there.verdict, back.verdict) == (BETTER, WORSE)
    assert (there.difference, there.low, there.high) == pytest.approx(
        (-back.difference, -back.high, -back.low), abs=1e-15
    )
    assert (there.p_value, there.minimal_detectable_difference) == (back.p_value, back.minimal_detectable_difference)
    assert there.sentence == back.sentence


def test_an_interval_does_not_depend_on_other_metrics() -> None:
    scores = experiment(np.random.default_rng(1), 12, 2, 0.01, False)
    more = scores_of("one", [[0.5]] * 12, "clip_i") + scores
    assert compare.summarize(more, SECTION)["one"]["clip_t"] == compare.summarize(scores, SECTION)["one"]["clip_t"]


def test_pairing_removes_what_makes_prompts_hard() -> None:
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 0.5, (12, 1))
    scores = scores_of("one", (ease + 0.05).tolist()) + scores_of("two", (ease + rng.normal(0, 0.01, (12, 1))).tolist())
    of_one = compare.summarize(scores, SECTION)["one"]["clip_t"]
    assert of_one.high - of_one.low > 0.3
    assert only(scores).better == "one"


def test_only_items_that_both_arms_have_are_compared() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 0.05, (10, 1))
    scores = scores_of("one", values.tolist()) + scores_of("two", (values[:7] - 0.02).tolist())
    found = only(scores)
    assert found.pairs == 7
    assert found.difference == pytest.approx(0.02)


def test_every_pair_of_arms_then_every_arm_against_the_base_but_never_real_pictures() -> None:
    scores = [s for arm in ("base", "a", "b", "c", "real") for s in scores_of(arm, [[0.1]] * 6)]
    found = compare.compare(scores, SECTION, {"clip_t": True}, "clip_t")
    pairs = [(c.first, c.second) for c in found]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "base"), ("b", "base"), ("c", "base")]
    assert all(c.better is None for c in found)
    assert set(compare.summarize(scores, SECTION)) == {"base", "a", "b", "c", "real"}


def test_real_pictures_are_clusters_of_their_own() -> None:
    scores = [Score("clip_i", "real", f"e{i}", 0.8 + 0.01 * i, "mini") for i in range(5)]
    assert compare.summarize(scores, SECTION)["real"]["clip_i"].clusters == 5


def test_too_few_prompts_never_claim_a_difference() -> None:
    few = FEWEST_PROMPTS - 1
    found = only(scores_of("one", [[0.5]] * few) + scores_of("two", [[0.1]] * few))
    assert found.better is None
    assert found.sentence.startswith("Too few prompts (below 6) to tell a difference in prompt following")
    enough = only(scores_of("one", [[0.5]] * FEWEST_PROMPTS) + scores_of("two", [[0.1]] * FEWEST_PROMPTS))
    assert enough.better == "one"


def test_a_share_of_nothing_is_not_certain() -> None:
    interval = compare.summarize(scores_of("one", [[0.0]] * 16, "oracle_subject"), SECTION)["one"]["oracle_subject"]
    assert (interval.mean, interval.low) == (0.0, 0.0)
    assert interval.high == pytest.approx(0.206, abs=1e-3)  # Clopper-Pearson for 0 of 16
    always = compare.summarize(scores_of("one", [[1.0]] * 16, "oracle_subject"), SECTION)["one"]["oracle_subject"]
    assert (always.low, always.high) == (pytest.approx(0.794, abs=1e-3), 1.0)


def test_lower_is_better_for_leaks() -> None:
    leaks = [[1.0], [0.0], [1.0], [1.0], [0.0], [1.0], [1.0], [1.0], [1.0]]
    scores = scores_of("leaky", leaks, "oracle_leak") + scores_of("tight", [[0.0]] * 9, "oracle_leak")
    found = only(scores, higher_is_better=False)
    assert (found.verdict, found.better) == (WORSE, "tight")
    assert found.difference > 0
    assert found.sentence.startswith(
        "tight lets the subject leak into ordinary pictures less often than leaky, by 78 points ("
    )


def test_the_sentence_of_a_difference() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0.25, 0.02, (24, 1))
    better = (values + 0.021 + rng.normal(0, 0.01, (24, 1))).tolist()
    scores = scores_of("human", better) + scores_of("blip", values.tolist()) + scores_of("base", values.tolist())
    between, human, blip = compare.compare(scores, SECTION, {"clip_t": True}, "clip_t")
    assert between.sentence == (
        f"human follows the prompts better than blip, by {between.difference:.3f} ({between.low:.3f} to "
        f"{between.high:.3f}, 24 prompts, one training run each: these two files, not these captioning methods)."
    )
    assert human.sentence.startswith("human follows the prompts better than the base model, by 0.0")
    assert blip.sentence == (
        "No detectable difference in prompt following between blip and the base model: "
        "0.000 (0.000 to 0.000, 24 prompts, one training run: this file, not this captioning method)."
    )


@pytest.mark.parametrize(
    ("runs", "scope"),
    [
        (1, ", one training run each: these two files, not these captioning methods)"),
        (2, ", 2 training runs each: these four files, not these captioning methods)"),
        (3, ", 3 training runs each)"),
    ],
)
@pytest.mark.parametrize("difference", [0.0, 0.05])
def test_few_training_runs_support_a_claim_about_files_only(runs: int, scope: str, difference: float) -> None:
    found = only(study(np.random.default_rng(5), difference, runs))
    assert found.training_runs == runs
    assert scope in found.sentence
    assert (found.verdict == BETTER) == (difference > 0)


def test_no_difference_says_what_the_design_would_have_found() -> None:
    found = only(study(np.random.default_rng(6), 0.0))
    assert found.verdict == NO_DIFFERENCE
    least = found.minimal_detectable_difference
    assert least > found.high - found.difference  # four of five repetitions take more than the half width
    assert found.sentence.endswith(f"; this design finds differences from {least:.3f} up.")


def test_the_primary_metric_is_judged_by_its_interval() -> None:
    rng, told = np.random.default_rng(7), set()
    for difference in np.linspace(0, 0.006, 25):
        found = only(study(rng, float(difference)))
        assert found.primary and found.p_adjusted == found.p_value
        assert (found.verdict != NO_DIFFERENCE) == (not found.low <= 0 <= found.high) == (found.p_value < 0.05)
        told.add(found.verdict)
    assert told == {BETTER, NO_DIFFERENCE}


def test_secondary_metrics_are_corrected_for_their_number() -> None:
    names = ["clip_t", "clip_i", "a", "b", "c", "d"]
    scores = study(np.random.default_rng(8), 0.0)
    for name in names[1:]:
        scores += study(np.random.default_rng(9), 0.0075, 3, 12, name)
    found = {c.metric: c for c in compare.compare(scores, SECTION, dict.fromkeys(names, True), "clip_t")}
    one = found["clip_i"]
    assert not one.primary and one.p_value < 0.05 and one.low > 0
    assert [found[n].p_adjusted for n in names[1:]] == holm([found[n].p_value for n in names[1:]])
    assert one.p_adjusted > 0.05
    assert one.verdict == NO_DIFFERENCE
    assert one.sentence.endswith("; the interval excludes 0, but not after correction for 5 comparisons.")


def test_arms_and_floors_are_corrected_apart() -> None:
    """One secondary metric, two arms and the base: one comparison of arms, two with the base."""
    scores = study(np.random.default_rng(10), 0.004) + study(np.random.default_rng(11), 0.004, metric="clip_i")
    scores += scores_of(BASE, [[v, v] for v in np.linspace(0.2, 0.3, 12)], "clip_i")
    found = compare.compare(scores, SECTION, {"clip_t": True, "clip_i": True}, "clip_t")
    arms, *floors = [c for c in found if c.metric == "clip_i"]
    assert arms.p_adjusted == arms.p_value
    assert [f.p_adjusted for f in floors] == holm([f.p_value for f in floors]) != [f.p_value for f in floors]


def test_pictures_of_the_trainings_progress_are_not_compared() -> None:
    scores = study(np.random.default_rng(12), 0.0)
    progress = [Score("clip_t", "one", "000-0", 9.0, "mini", 0, 0, epoch=2)]
    assert only(scores + progress) == only(scores)
    assert compare.summarize(scores + progress, SECTION) == compare.summarize(scores, SECTION)


def test_more_prompts_tell_smaller_differences() -> None:
    told = [
        sum(only(study(np.random.default_rng(seed), 0.004, 3, prompts)).verdict == BETTER for seed in range(40))
        for prompts in (6, 24, 60)
    ]
    assert told == sorted(told) and told[-1] > told[0] + 10


def test_identical_arms_do_not_differ() -> None:
    scores = study(np.random.default_rng(13), 0.0)
    twins = [s for s in scores if s.arm == "one"]
    twins += [Score(s.metric, "two", s.item, s.value, s.encoder, s.prompt_index, s.training_seed) for s in twins]
    found = only(twins)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict == NO_DIFFERENCE


def test_shares_stay_within_what_a_share_can_be() -> None:
    rng = np.random.default_rng(14)
    scores = [
        s for seed in range(3) for s in scores_of("one", (rng.random((8, 2)) < 0.9).tolist(), "oracle_subject", seed)
    ]
    interval = compare.summarize(scores, SECTION)["one"]["oracle_subject"]
    assert interval.mean < interval.high == 1.0


def test_the_cross_arm_matrix_is_over_pictures_and_trainings() -> None:
    losses = [
        CrossLoss(arm, seed, captions, f"e{i}", 0.1 + 0.01 * i + (arm != captions) * 0.05, True)
        for arm, seeds in (("human", 3), ("blip", 3), (BASE, 1))
        for seed in range(seeds)
        for captions in ("human", "blip")
        for i in range(4)
    ]
    found = compare.matrix(losses, SECTION)
    assert list(found) == ["human", "blip", BASE] and list(found["human"]) == ["human", "blip"]
    assert found["human"]["human"].mean == pytest.approx(0.115)
    assert found["human"]["blip"].mean == pytest.approx(0.165)
    assert (found["human"]["blip"].n, found["human"]["blip"].clusters, found[BASE]["blip"].n) == (12, 4, 4)
    assert isinstance(found[BASE]["human"], Interval)
    assert compare.matrix([], SECTION) == {}


def test_the_pairs_of_two_arms_can_be_had_for_planning() -> None:
    scores = study(np.random.default_rng(15), 0.01)
    table = compare.pairs_of(scores, "clip_t", "one", "two")
    assert table.counts.shape == (3, 12) and table.mean == pytest.approx(only(scores).difference)
    with pytest.raises(DataError, match="no scores of 'clip_i' for the arm 'one'"):
        compare.pairs_of(scores, "clip_i", "one", "two")


def test_the_worse_arm_first_gives_the_same_sentence_turned_round() -> None:
    values = [[0.1 + 0.01 * i] for i in range(8)]
    better = [[v[0] + 0.05 + 0.001 * i] for i, v in enumerate(values)]
    found = only(scores_of("worse", values) + scores_of("good", better))
    assert found.better == "good" and found.difference < 0
    assert found.sentence.startswith("good follows the prompts better than worse, by 0.05")
    assert "\N{MINUS SIGN}" not in found.sentence


def test_an_end_that_is_not_zero_is_not_printed_as_zero() -> None:
    rng = np.random.default_rng(0)
    values = 0.0004 + rng.normal(0, 0.0001, (12, 1))
    found = only(scores_of("one", values.tolist()) + scores_of("two", [[0.0]] * 12))
    assert found.better == "one"
    assert "(0.000 to" not in found.sentence


def test_numbers_have_true_minus_signs_and_no_negative_zero() -> None:
    scores = scores_of("one", [[-0.2], [0.2], [-0.3], [0.3], [-0.1], [0.0999]]) + scores_of("two", [[0.0]] * 6)
    sentence = only(scores).sentence
    assert ": 0.000 (\N{MINUS SIGN}0." in sentence and "-" not in sentence
