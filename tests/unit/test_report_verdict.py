"""The sentence at the head of a report: which arm taught best, how sure that is, and what it must not claim."""

from __future__ import annotations

from captune.report.verdict import caveat, verdict
from captune.types import BETTER, NO_DIFFERENCE, WORSE, Comparison, Interval

PRIMARY = "oracle_subject"


def interval(mean: float, clusters: int = 24) -> Interval:
    return Interval(mean, mean - 0.05, mean + 0.05, 2 * clusters, clusters)


def comparison(metric: str, first: str, second: str, mean: float, better: str | None) -> Comparison:
    verdict = {None: NO_DIFFERENCE, first: BETTER, second: WORSE}[better]
    p = 0.5 if better is None else 0.001
    return Comparison(
        *(metric, first, second, mean, mean - 0.1, mean + 0.1, 48, 24, 1, metric == PRIMARY, p, p, verdict, 0.1, "")
    )


def test_the_verdict_names_the_arm_that_taught_best() -> None:
    told = verdict(
        {
            "human": {"oracle_subject": interval(0.88), "oracle_prompt": interval(0.6)},
            "blip": {"oracle_subject": interval(0.46), "oracle_prompt": interval(0.63)},
            "base": {"oracle_subject": interval(0.0), "oracle_prompt": interval(1.0)},
            "real": {"oracle_subject": interval(1.0)},
        },
        [
            comparison("oracle_subject", "human", "blip", 0.42, "human"),
            comparison("oracle_subject", "human", "base", 0.88, "human"),
            comparison("oracle_subject", "blip", "base", 0.46, "blip"),
            comparison("oracle_prompt", "human", "blip", -0.03, None),
            comparison("oracle_prompt", "human", "base", -0.4, "base"),
            comparison("oracle_prompt", "blip", "base", -0.37, "base"),
        ],
    )
    assert told.subject == (
        "The arm human taught the subject best: it is in 88% of the pictures that ask for it with human, 46% with "
        "blip and 0% without a LoRA."
    )
    assert told.sure == "human leads blip by 42 points (32 to 52, 24 prompts)."
    assert told.following == (
        "Ordinary prompts are drawn as asked in 63% with blip, 60% with human and 100% without a LoRA: "
        "no detectable difference between the arms; blip and human detectably below the base model."
    )
    assert told.text == f"{told.subject} {told.sure} {told.following}"


def test_no_detectable_difference_is_a_legal_verdict() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"human": 0.8, "blip": 0.83, "base": 0.0}.items()},
        [
            comparison("oracle_subject", "human", "blip", -0.03, None),
            comparison("oracle_subject", "human", "base", 0.8, "human"),
            comparison("oracle_subject", "blip", "base", 0.83, "blip"),
        ],
    )
    assert told.subject == (
        "No detectable difference between blip and human in teaching the subject: it is in 83% of the pictures that "
        "ask for it with blip, 80% with human and 0% without a LoRA."
    )
    assert told.sure == "The difference between blip and human is 3 points (\N{MINUS SIGN}7 to 13, 24 prompts)."


def test_two_of_three_arms_can_share_the_lead() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"a": 0.8, "b": 0.75, "c": 0.2}.items()},
        [
            comparison("oracle_subject", "a", "b", 0.05, None),
            comparison("oracle_subject", "a", "c", 0.6, "a"),
            comparison("oracle_subject", "b", "c", 0.55, "b"),
        ],
    )
    assert told.subject.startswith(
        "The arms a and b taught the subject best, with no detectable difference between the two: it is in 80%"
    )


def test_arms_no_better_than_the_base_taught_nothing() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"human": 0.04, "blip": 0.0, "base": 0.0}.items()},
        [
            comparison("oracle_subject", "human", "blip", 0.04, None),
            comparison("oracle_subject", "human", "base", 0.04, None),
            comparison("oracle_subject", "blip", "base", 0.0, None),
        ],
    )
    assert told.subject.startswith("No arm detectably taught the subject: it is in 4%")


def test_without_the_oracle_clip_judges() -> None:
    told = verdict(
        {
            "human": {"clip_i": interval(0.8), "clip_t": interval(0.28)},
            "base": {"clip_i": interval(0.6), "clip_t": interval(0.28)},
        },
        [comparison("clip_i", "human", "base", 0.2, "human"), comparison("clip_t", "human", "base", 0.0, None)],
    )
    assert told.text == (
        "The arm human taught the subject: its likeness to the training pictures is 0.800 with human and 0.600 "
        "without a LoRA. human leads the base model by 0.200 (0.100 to 0.300, 24 prompts). Prompt following (CLIP-T) is "
        "0.280 with human and 0.280 without a LoRA: not detectably changed by the LoRA."
    )


def test_few_prompts_allow_no_verdict() -> None:
    told = verdict({a: {"oracle_subject": interval(v, 4)} for a, v in {"human": 1.0, "base": 0.0}.items()}, [])
    assert told.subject.startswith("Too few prompts ask for the subject to tell a difference (below 6): it is in 100%")


def test_one_training_run_supports_a_claim_about_files_only() -> None:
    assert "about these files" in caveat(1)
    assert caveat(3).startswith("3 LoRAs were trained per arm")
