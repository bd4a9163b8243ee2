"""What a study of some size can find, and what size finds a given difference: before any GPU hour is spent."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from captune import recipe, runs
from captune.errors import DataError
from captune.evaluate import statistics
from captune.evaluate.compare import pairs_of
from captune.evaluate.statistics import Components, Design
from captune.types import BASE, FEWEST_RUNS, REAL, Score

# Assumed where no finished study says better: standard deviations of paired differences of CLIP-T with a full-size CLIP,
# pictures of equal prompt and noise correlating by a half.
TYPICAL = Components(run=0.004**2, prompt=0.004**2, interaction=0.002**2, pair=0.03**2)


def measured(run: Path, metric: str = "") -> tuple[str, Components]:
    """The metric (the primary one if not given) and its variance components, the mean over a finished run's pairs of arms."""
    file = run / "evaluate" / "scores.jsonl"
    if not file.is_file():
        raise DataError(f"{run} has no {file.relative_to(run)}: it is not the folder of a finished study")
    metric = metric or recipe.read(run / "recipe.toml").primary
    scores = runs.read_records(file, Score)
    arms = [a for a in dict.fromkeys(s.arm for s in scores if s.metric == metric) if a not in (BASE, REAL)]
    if len(arms) < 2:
        raise DataError(f"{run} has no two arms with scores of {metric!r}, so differences cannot be learnt from it")
    found = [statistics.components(pairs_of(scores, metric, a, b)) for a, b in combinations(arms, 2)]
    parts = ("run", "prompt", "interaction", "pair")
    if not any(getattr(c, p) for c in found for p in parts):
        raise DataError(
            f"the arms of {run} do not differ in a single score of {metric!r}, so how much differences vary cannot be learnt "
            "from it; take another run, or another --metric"
        )
    return metric, Components(**{p: sum(getattr(c, p) for c in found) / len(found) for p in parts})


def plan_study(truth: Components, design: Design, difference: float | None, confidence: float = 0.95) -> dict[str, Any]:
    """What the design finds, what more of each would, and the designs that find `difference` in 80 % of repetitions."""
    around = {
        "this design": design,
        "twice the prompts": Design(design.training_runs, 2 * design.prompts, design.seeds),
        "twice the sampling seeds": Design(design.training_runs, design.prompts, 2 * design.seeds),
        "two more training seeds": Design(design.training_runs + 2, design.prompts, design.seeds),
    }
    told: dict[str, Any] = {
        "standard_deviations": {name: value**0.5 for name, value in runs.plain(truth).items()},
        "detectable": {
            name: {**runs.plain(d), "difference": statistics.detectable(truth, d, confidence)}
            for name, d in around.items()
        },
    }
    if difference is not None:
        told["difference"] = difference
        told["power"] = statistics.found_in(truth, design, difference, confidence)
        enough = statistics.needed(truth, difference, seeds=design.seeds, confidence=confidence)
        told["designs"] = [{**runs.plain(d), "pictures_per_arm": d.training_runs * d.prompts * d.seeds} for d in enough]
    return told


def sentences(metric: str, told: dict[str, Any]) -> list[str]:
    """The same in words."""
    spread = told["standard_deviations"]
    lines = [
        f"{metric}: paired differences vary by {spread['pair']:.4f} between pictures, {spread['prompt']:.4f} between prompts "
        f"and {spread['run']:.4f} between trainings (standard deviations)."
    ]
    for name, row in told["detectable"].items():
        size = f"{row['training_runs']} trainings x {row['prompts']} prompts x {row['seeds']} sampling seeds"
        lines.append(f"{name} ({size}) finds differences from {row['difference']:.4f} up.")
    if "power" in told:
        lines.append(
            f"A difference of {told['difference']:g} is found by this design in {told['power']:.0%} of repetitions."
        )
        for row in told["designs"]:
            lines.append(
                f"In 80% by {row['training_runs']} trainings x {row['prompts']} prompts x {row['seeds']} sampling seeds: "
                f"{row['pictures_per_arm']} pictures per arm."
            )
        if not told["designs"]:
            lines.append("No design of up to 10 trainings and 1000 prompts finds it in 80% of repetitions.")
    if any(row["training_runs"] < FEWEST_RUNS for row in told["detectable"].values()):
        lines.append("With fewer than 3 trainings per arm this is about the files, not about the captions.")
    return lines
