"""The run in a few honest sentences: which arm taught the subject best, how sure, and what became of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from captune.metrics import words
from captune.types import BASE, FEWEST_PROMPTS, FEWEST_RUNS, REAL, Comparison, Interval

LIKENESS = ("clip_i", "clip_i_best", "dino", "dino_best")  # the subject as likeness to the training pictures
SUBJECT = ("oracle_subject", *LIKENESS)  # who leads where the primary metric was not measured: the first that was


Intervals = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Verdict:
    """`subject`: how well it was taught; `sure`: by how much, and its interval; `following`: what became of prompts."""

    subject: str
    sure: str = ""
    following: str = ""

    @property
    def text(self) -> str:
        return " ".join(sentence for sentence in (self.subject, self.sure, self.following) if sentence)


def verdict(intervals: Intervals, comparisons: Sequence[Comparison], primary: str = "") -> Verdict:
    """The verdict by the study's primary metric, from means, intervals and comparisons alone; "no detectable difference"
    is a legal one."""
    lead = next((metric for metric in (primary, *SUBJECT) if _arms(intervals, metric)), None)
    if lead is None:
        following = _following(intervals, comparisons, "clip_t")
        return Verdict("How well the subject was taught was not measured.", following=following)
    subject, sure = _subject(intervals, comparisons, lead)
    follow = next((m for m in _follows(lead) if _arms(intervals, m)), None)
    return Verdict(subject, sure, _following(intervals, comparisons, follow) if follow else "")


def caveat(runs: int) -> str:
    """What one training run per arm, or several, allow to be said."""
    if runs < FEWEST_RUNS:
        trained = "One LoRA was trained" if runs <= 1 else f"{runs} LoRAs were trained"
        return (
            f"{trained} per arm, so differences are about these files, not these captioning methods; "
            f"a claim about the methods takes {FEWEST_RUNS} training seeds per arm or more."
        )
    return f"{runs} LoRAs were trained per arm, and the intervals count how much they vary."


def _arms(intervals: Intervals, metric: str) -> dict[str, Interval]:
    return {arm: of[metric] for arm, of in intervals.items() if arm not in (BASE, REAL) and metric in of}


def _between(comparisons: Sequence[Comparison], metric: str, first: str, second: str) -> Comparison | None:
    return next((c for c in comparisons if c.metric == metric and {c.first, c.second} == {first, second}), None)


def _better(comparisons: Sequence[Comparison], metric: str, first: str, second: str) -> bool:
    """Whether the first is detectably better than the second."""
    found = _between(comparisons, metric, first, second)
    return found is not None and found.better == first


def _follows(lead: str) -> tuple[str, ...]:
    """Which metrics tell what became of prompts, beside the lead."""
    if lead == "oracle_subject":
        return "oracle_prompt", "clip_t"
    return ("clip_t",) if lead in LIKENESS else ()


def _direction(comparisons: Sequence[Comparison], metric: str) -> int:
    """1 where higher is better, -1 where lower is; as long as no arm was better it does not matter which."""
    told = next((c for c in comparisons if c.metric == metric and c.better is not None), None)
    return -1 if told is not None and (told.difference > 0) != (told.better == told.first) else 1


def _subject(intervals: Intervals, comparisons: Sequence[Comparison], lead: str) -> tuple[str, str]:
    """How well the lead measure came out, in the words of teaching where it is about the subject, and how sure that is."""
    arms, direction = _arms(intervals, lead), _direction(comparisons, lead)
    ranked = sorted(arms, key=lambda arm: -direction * arms[arm].mean)
    leader, base = ranked[0], intervals.get(BASE, {}).get(lead)
    levels = _levels(lead, arms, ranked, base)
    quality = "teaching the subject" if lead in SUBJECT else words(lead).quality
    if max(interval.clusters for interval in arms.values()) < FEWEST_PROMPTS:
        few = f"Too few prompts to tell a difference in {quality} (below {FEWEST_PROMPTS})"
        if lead in SUBJECT:
            few = f"Too few prompts ask for the subject to tell a difference (below {FEWEST_PROMPTS})"
        return f"{few}: {levels}.", ""
    if lead not in SUBJECT and len(ranked) == 1:
        return f"{quality[:1].upper()}{quality[1:]}: {levels}.", _lead_of(comparisons, lead, leader, BASE)
    if lead in SUBJECT and base is not None and not any(_better(comparisons, lead, arm, BASE) for arm in ranked):
        who = f"The arm {leader} did not detectably teach" if len(ranked) == 1 else "No arm detectably taught"
        return f"{who} the subject: {levels}.", _lead_of(comparisons, lead, leader, BASE)
    if len(ranked) == 1:
        return f"The arm {leader} taught the subject: {levels}.", _lead_of(comparisons, lead, leader, BASE)
    tied = [arm for arm in ranked[1:] if not _better(comparisons, lead, leader, arm)]
    if not tied:
        best = "taught the subject best" if lead in SUBJECT else f"is best in {quality}"
        return f"The arm {leader} {best}: {levels}.", _lead_of(comparisons, lead, leader, ranked[1])
    group, sure = [leader, *tied], _lead_of(comparisons, lead, leader, tied[0])
    if len(group) == len(ranked):
        return f"No detectable difference between {_listed(group)} in {quality}: {levels}.", sure
    rest = f"with no detectable difference between {'the two' if len(group) == 2 else 'them'}"
    best = "taught the subject best" if lead in SUBJECT else f"are best in {quality}"
    return f"The arms {_listed(group)} {best}, {rest}: {levels}.", sure


def _levels(metric: str, arms: Mapping[str, Interval], ranked: Sequence[str], base: Interval | None) -> str:
    """ "it is in 91% of the pictures that ask for it with human, 44% with blip, and 0% without a LoRA"."""
    of, opening = "", ""
    if metric == "oracle_subject":
        of, opening = " of the pictures that ask for it", "it is in "
    elif metric in LIKENESS:
        opening = f"its {words(metric).quality} is "
    first, *rest = [f"{_value(metric, arms[arm].mean)} with {arm}" for arm in ranked]
    first = f"{_value(metric, arms[ranked[0]].mean)}{of} with {ranked[0]}"
    floor = [f"{_value(metric, base.mean)} without a LoRA"] if base is not None else []
    return f"{opening}{_listed([first, *rest, *floor])}"


def _lead_of(comparisons: Sequence[Comparison], metric: str, leader: str, other: str) -> str:
    """ "human leads blip by 47 points (19 to 75, 16 prompts)."; a difference that is not told is not called a lead."""
    found = _between(comparisons, metric, leader, other)
    if found is None:
        return ""
    sign = 1 if found.first == leader else -1
    if found.better == leader:
        sign = 1 if found.difference > 0 else -1  # a lead is said as a positive number, also where lower is better
    share = words(metric).share
    mean, low, high = (
        (f"{round(100 * value) + 0:.0f}" if share else f"{round(value, 3) + 0.0:.3f}").replace("-", "\N{MINUS SIGN}")
        for value in (sign * found.difference, *sorted((sign * found.low, sign * found.high)))
    )
    name = "the base model" if other == BASE else other
    opening = (
        f"{leader} leads {name} by" if found.better == leader else f"The difference between {leader} and {name} is"
    )
    return f"{opening} {mean}{' points' if share else ''} ({low} to {high}, {found.prompts} prompts)."


def _following(intervals: Intervals, comparisons: Sequence[Comparison], metric: str) -> str:
    """How the arms follow prompts: against each other, then against the base."""
    arms = _arms(intervals, metric)
    if not arms:
        return ""
    ranked = sorted(arms, key=lambda arm: -arms[arm].mean)
    base = intervals.get(BASE, {}).get(metric)
    values = [f"{_value(metric, arms[arm].mean)} with {arm}" for arm in ranked]
    if base is not None:
        values.append(f"{_value(metric, base.mean)} without a LoRA")
    if max(interval.clusters for interval in arms.values()) < FEWEST_PROMPTS:
        said = ["too few prompts to tell a difference"]
    else:
        said = [_among(comparisons, metric, ranked)] if len(ranked) > 1 else []
        said += [_against_base(comparisons, metric, ranked)] if base is not None else []
    opening = "Ordinary prompts are drawn as asked in" if metric == "oracle_prompt" else "Prompt following (CLIP-T) is"
    return f"{opening} {_listed(values)}" + (f": {'; '.join(said)}." if said else ".")


def _among(comparisons: Sequence[Comparison], metric: str, ranked: Sequence[str]) -> str:
    behind = [arm for arm in ranked[1:] if _better(comparisons, metric, ranked[0], arm)]
    if behind:
        return f"{ranked[0]} is detectably ahead of {_listed(behind)}"
    return "no detectable difference between the arms"


def _against_base(comparisons: Sequence[Comparison], metric: str, ranked: Sequence[str]) -> str:
    parts = []
    for where, group in (
        ("above", [arm for arm in ranked if _better(comparisons, metric, arm, BASE)]),
        ("below", [arm for arm in ranked if _better(comparisons, metric, BASE, arm)]),
    ):
        if group:
            parts.append(f"{_listed(group)} detectably {where} the base model")
    if parts:
        return " and ".join(parts)
    return "none detectably different from the base model" if len(ranked) > 1 else "not detectably changed by the LoRA"


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.0f}%" if words(metric).share else f"{value:.3f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
