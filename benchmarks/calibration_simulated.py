"""How often are equal arms called different, and unequal ones found? On scores drawn with known effects.

    python benchmarks/calibration_simulated.py [--studies 1000]

Every study has two arms, each trained three times, 25 prompts and 4 sampling seeds unless a row says otherwise, and goes
through `captune.evaluate.compare` as a real one does, with one metric, which is the primary. Pictures have a standard
deviation of 0.03 and a correlation of 0.5 between the arms at equal seeds; prompts and training runs add effects of their own
to the difference. The Wilson interval beside a rate is what so many studies leave open.
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from captune.evaluate import statistics
from captune.evaluate.compare import compare
from captune.evaluate.statistics import Components, Design
from captune.recipe import EvaluateSection
from captune.types import NO_DIFFERENCE, Comparison, Score

Floats = NDArray[np.float64]
PICTURE, CORRELATION = 0.03, 0.5
LEAST, MOST = 0.02, 0.08  # false positives of the primary metric at the nominal 5 %


@dataclass(frozen=True)
class Scenario:
    """What differs between two arms beside their pictures: standard deviations of the effects on the difference."""

    name: str
    run: float = 0.0
    prompt: float = 0.0
    interaction: float = 0.0
    kind: str = "normal"  # or "heavy" (Student's t with 3 degrees), "skewed" (log-normal prompts), "share" (0 or 1)
    design: Design = Design(3, 25, 4)

    @property
    def truth(self) -> Components:
        return Components(self.run**2, self.prompt**2, self.interaction**2, 2 * (1 - CORRELATION) * PICTURE**2)

    @property
    def metric(self) -> str:
        return "oracle_subject" if self.kind == "share" else "clip_t"


SCENARIOS = (
    Scenario("pictures alone"),
    Scenario("small prompt effects", prompt=0.004),
    Scenario("prompt effects", prompt=0.01),
    Scenario("large prompt effects", prompt=0.02),
    Scenario("huge prompt effects", prompt=0.1),
    Scenario("run effects alone", run=0.004),
    Scenario("run effects, small prompt effects", run=0.004, prompt=0.004),
    Scenario("run effects, prompt effects", run=0.004, prompt=0.01),
    Scenario("run effects, large prompt effects", run=0.004, prompt=0.02),
    Scenario("run effects of both arms (x 1.4)", run=0.0057, prompt=0.0057),
    Scenario("large run effects, small prompt effects", run=0.01, prompt=0.004),
    Scenario("large run effects, large prompt effects", run=0.01, prompt=0.02),
    Scenario("run effects dominate", run=0.05, prompt=0.02),
    Scenario("prompt x run interaction", prompt=0.01, interaction=0.01),
    Scenario("run effects and interaction", run=0.004, prompt=0.01, interaction=0.01),
    Scenario("heavy tails", run=0.004, prompt=0.01, kind="heavy"),
    Scenario("skewed prompt effects", run=0.004, prompt=0.02, kind="skewed"),
    Scenario("shares, no effects", kind="share"),
    Scenario("shares, prompt effects", prompt=0.02, kind="share"),
    Scenario("shares, run and prompt effects", run=0.01, prompt=0.02, kind="share"),
    Scenario("5 runs", run=0.004, prompt=0.01, design=Design(5, 25, 4)),
    Scenario("100 prompts", run=0.004, prompt=0.01, design=Design(3, 100, 2)),
    Scenario("8 prompts", run=0.004, prompt=0.01, design=Design(3, 8, 4)),
)
FEW_RUNS = (  # the claim is about these files, so only prompts may be taken by chance
    Scenario("1 run: of these files", prompt=0.01, design=Design(1, 25, 4)),
    Scenario("2 runs: of these files", prompt=0.01, design=Design(2, 25, 4)),
    Scenario("1 run: taken for the captions", run=0.004, prompt=0.01, design=Design(1, 25, 4)),
    Scenario("2 runs: taken for the captions", run=0.004, prompt=0.01, design=Design(2, 25, 4)),
)


@dataclass(frozen=True)
class Rate:
    """How many of so many studies."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's (1927) interval at 95 %."""
        z, p, n = 1.96, self.share, self.of
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), (middle + half) / (1 + z * z / n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def arms(scenario: Scenario, difference: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Scores of two arms, each (runs, prompts, seeds), whose true difference is `difference`."""
    runs, prompts, seeds = scenario.design.training_runs, scenario.design.prompts, scenario.design.seeds
    normal: Callable[..., Floats] = rng.normal
    if scenario.kind == "heavy":

        def normal(_: float, deviation: float, size: tuple[int, ...]) -> Floats:
            return deviation * rng.standard_t(3, size) / math.sqrt(3)  # scaled to the same deviation

    effects = difference + normal(0, scenario.run, (runs, 1, 1)) + normal(0, scenario.interaction, (runs, prompts, 1))
    if scenario.kind == "skewed":
        effects = effects + scenario.prompt * (rng.lognormal(0, 1, (1, prompts, 1)) - math.exp(0.5)) / 2.161
    else:
        effects = effects + normal(0, scenario.prompt, (1, prompts, 1))
    ease = 0.25 + rng.normal(0, 0.03, (1, prompts, 1))
    shared = math.sqrt(CORRELATION) * normal(0, PICTURE, (runs, prompts, seeds))
    first, second = (
        ease + sign * effects / 2 + shared + math.sqrt(1 - CORRELATION) * normal(0, PICTURE, (runs, prompts, seeds))
        for sign in (1, -1)
    )
    if scenario.kind == "share":
        return (first > 0.25).astype(float), (second > 0.25).astype(float)
    return first, second


def scores_of(arm: str, values: Floats, metric: str) -> list[Score]:
    return [
        Score(metric, arm, f"{prompt:03d}-{seed}", value, "simulated", prompt, run)
        for run, of_run in enumerate(values.tolist())
        for prompt, of_prompt in enumerate(of_run)
        for seed, value in enumerate(of_prompt)
    ]


def studies(scenario: Scenario, count: int, difference: float = 0.0) -> Iterator[Comparison]:
    """The comparisons of so many studies of two arms."""
    rng = np.random.default_rng([zlib.crc32(scenario.name.encode()), round(1e6 * difference)])
    section = EvaluateSection()
    for _ in range(count):
        first, second = arms(scenario, difference, rng)
        scores = scores_of("one", first, scenario.metric) + scores_of("two", second, scenario.metric)
        (found,) = compare(scores, section, {scenario.metric: True}, scenario.metric)
        yield found


def told(scenario: Scenario, count: int, difference: float = 0.0) -> Rate:
    """How many studies call the arms different."""
    return Rate(sum(found.verdict != NO_DIFFERENCE for found in studies(scenario, count, difference)), count)


def false_positives(count: int) -> tuple[list[str], bool]:
    """A table of equal arms, and whether every rate with three runs or more is within the bar."""
    rows = ["| equal arms | run | prompt | interaction | design | called different |", "|---|---|---|---|---|---|"]
    within = True
    for scenario in (*SCENARIOS, *FEW_RUNS):
        rate, design = told(scenario, count), scenario.design
        within &= scenario in FEW_RUNS or LEAST <= rate.share <= MOST
        size = f"{design.training_runs} x {design.prompts} x {design.seeds}"
        rows.append(
            f"| {scenario.name} | {scenario.run} | {scenario.prompt} | {scenario.interaction} | {size} | {rate} |"
        )
    return rows, within


def power(count: int) -> list[str]:
    """A table of unequal arms: found, foretold, and how often the interval holds the true difference."""
    rows = ["| unequal arms | true difference | found | foretold | interval holds it |", "|---|---|---|---|---|"]
    chosen = ("pictures alone", "prompt effects", "run effects, prompt effects", "run effects dominate")
    for scenario in (s for s in SCENARIOS if s.name in chosen):
        least = statistics.detectable(scenario.truth, scenario.design)
        for difference in (least / 2, least):
            found = list(studies(scenario, count, difference))
            claimed = Rate(sum(one.verdict != NO_DIFFERENCE for one in found), count)
            held = Rate(sum(one.low <= difference <= one.high for one in found), count)
            foretold = 100 * statistics.found_in(scenario.truth, scenario.design, difference)
            rows.append(f"| {scenario.name} | {difference:.4f} | {claimed} | {foretold:.0f} % | {held} |")
    middle = next(s for s in SCENARIOS if s.name == "run effects, prompt effects")
    for design in (Design(3, 25, 4), Design(3, 50, 4), Design(3, 25, 8), Design(5, 25, 4)):
        scenario = replace(middle, design=design)
        foretold = 100 * statistics.found_in(scenario.truth, design, 0.012)
        size = f"{design.training_runs} runs x {design.prompts} prompts x {design.seeds} seeds"
        rows.append(f"| {size} | 0.0120 | {told(scenario, count, 0.012)} | {foretold:.0f} % | |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows, within = false_positives(arguments.studies)
    print("\n".join(rows), flush=True)
    print("\n" + "\n".join(power(max(arguments.studies // 2, 1))))
    bar = f"between {100 * LEAST:.0f} and {100 * MOST:.0f} %"
    print(f"\nfalse positives with 3 runs or more {bar}: {'yes' if within else 'NO'}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
