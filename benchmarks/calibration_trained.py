"""Are the study's verdicts right on real trainings? A/A pairs must rarely differ; shuffled captions must be found worse.

    python benchmarks/calibration_trained.py [--out runs/calibration] [--subjects 5] [--seeds 6]

Per subject of the mini world one study: the person's captions and the same captions dealt to the wrong pictures, each trained
with `--seeds` seeds. From these trainings:

- A/A: the true arm's trainings are dealt at random to two arms of half the seeds each, in four ways per subject.
- Planted: disjoint groups of three seeds, true against shuffled.
  Both over the prompts that ask for the subject; the ordinary ones, where captions hardly matter, serve the last table.
- Truth: over all pictures, and over all trainings, the rank correlation of the learned metrics with the oracle's reading.

Everything goes through the product's own stages; a second start continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from captune import demo, pipeline, recipe, runs
from captune.console import shown
from captune.evaluate.compare import compare
from captune.mini import subjects
from captune.recipe import Recipe
from captune.types import BETTER, NO_DIFFERENCE, REAL, Score

METRICS = ["clip_t", "clip_i", "oracle_subject", "oracle_background", "oracle_prompt"]
DIRECTION = dict.fromkeys(METRICS, True)
DEALS = 4  # A/A pairs per subject
GROUP = 3  # training seeds of an arm in a planted pair
STEPS = 200  # the demo's: 60 LoRAs in an hour
SEEDS = [0, 1]  # pictures per prompt
ORDINARY = 8  # prompts without the subject, after those that ask for it


def study_of(subject: str, pictures: Path, seeds: int) -> Recipe:
    """The demo's recipe with the arms `true` and `shuffled`, every training with `seeds` seeds."""
    values: dict[str, Any] = demo.demo_recipe(subject, pictures).model_dump(mode="json", exclude_none=True)
    values["train"]["steps"] = STEPS
    values["sample"] |= {"seeds": SEEDS, "prompts": [*demo.subject_prompts(), *demo.ordinary_prompts(ORDINARY, seed=2)]}
    values |= {
        "name": f"calibration-{subject}",
        "arm": [{"name": "true", "captioner": {"name": "sidecar"}}, {"name": "shuffled", "shuffled": "true"}],
        "study": {"training_seeds": list(range(seeds)), "primary": "clip_t", "denoising": False},
        "evaluate": {"metrics": METRICS},
        "export": {"formats": []},
    }
    return recipe.from_values(values, source="the calibration's recipe")


def scores_of(subject: str, out: Path, seeds: int) -> tuple[Recipe, list[Score]]:
    """All scores of one subject's study, trained and drawn where they are not yet."""
    folder = runs.RunFolder(out / subject)
    pictures = folder.path / "photos"
    demo.draw_photos(subject, pictures)
    chosen = study_of(subject, pictures, seeds)
    with shown() as progress:
        pipeline.run(chosen, folder, progress, upto="evaluate")
    return chosen, runs.read_records(folder.stage("evaluate").path / "scores.jsonl", Score)


def dealt(scores: Sequence[Score], groups: Sequence[Sequence[int]]) -> list[Score]:
    """The true arm's trainings as two arms, `first` and `second`, their seeds renamed so that they pair."""
    of = {
        seed: (arm, index)
        for arm, group in zip(("first", "second"), groups, strict=True)
        for index, seed in enumerate(group)
    }
    return [
        replace(s, arm=of[s.training_seed][0], training_seed=of[s.training_seed][1])
        for s in scores
        if s.arm == "true" and s.training_seed in of
    ]


def correlations(scores: Sequence[Score]) -> dict[str, float]:
    """Rank correlations of the learned metrics with the oracle's, over pictures and over trainings."""
    by: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for s in scores:
        if s.arm != REAL:
            by[s.arm, s.training_seed, s.item][s.metric] = s.value
    pictures = list(by.values())
    means: dict[tuple[object, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (arm, seed, _), row in by.items():
        for metric, value in row.items():
            means[arm, seed][metric].append(value)
    trainings = [{m: sum(v) / len(v) for m, v in row.items()} for row in means.values()]
    found = {}
    for learned, truth in (("clip_i", "oracle_subject"), ("clip_t", "oracle_background"), ("clip_t", "oracle_prompt")):
        for over, rows in (("pictures", pictures), ("trainings", trainings)):
            pairs = [(row[learned], row[truth]) for row in rows if learned in row and truth in row]
            found[f"{learned} with {truth}, over {len(pairs)} {over}"] = float(
                spearmanr(*zip(*pairs, strict=True)).statistic
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    false, pairs, found, planted = defaultdict(int), 0, defaultdict(int), 0
    related: dict[str, list[float]] = defaultdict(list)
    for subject in list(subjects.SUBJECTS)[: arguments.subjects]:
        chosen, scores = scores_of(subject, arguments.out, arguments.seeds)
        asked = [s for s in scores if s.prompt_index < len(demo.subject_prompts())]
        rng, half = random.Random(f"deal {subject}"), arguments.seeds // 2
        seen: set[frozenset[int]] = set()
        while len(seen) < DEALS:
            order = rng.sample(range(arguments.seeds), 2 * half)
            if frozenset(order[:half]) in seen or frozenset(order[half:]) in seen:
                continue
            seen.add(frozenset(order[:half]))
            pairs += 1
            for c in compare(dealt(asked, (order[:half], order[half:])), chosen.judging, DIRECTION, "clip_t"):
                false[c.metric] += c.verdict != NO_DIFFERENCE
        for start in range(0, arguments.seeds - GROUP + 1, GROUP):
            planted += 1
            group = [s for s in asked if s.arm in ("true", "shuffled") and start <= s.training_seed < start + GROUP]
            for c in compare(group, chosen.judging, DIRECTION, "clip_t"):
                found[c.metric] += c.verdict == BETTER
                print(f"{subject}, seeds {start} to {start + GROUP - 1}: {c.sentence}")
        for name, value in correlations(scores).items():
            related[name].append(value)
    print(
        f"\n| metric | A/A pairs called different, of {pairs} | shuffled captions found worse, of {planted} |\n|---|---|---|"
    )
    for metric in METRICS:
        print(f"| {metric} | {false[metric]} | {found[metric]} |")
    print("\n| rank correlation, per subject | mean | lowest |\n|---|---|---|")
    for name, values in related.items():
        print(f"| {name} | {sum(values) / len(values):.2f} | {min(values):.2f} |")


if __name__ == "__main__":
    main()
