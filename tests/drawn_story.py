"""A run's story without any model: pictures drawn in the mini world, scores that follow from what was drawn."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

from captune import metrics, recipe
from captune.evaluate import compare
from captune.metrics import MetricFacts
from captune.mini import grammar, subjects, world
from captune.report import Story
from captune.runs import sha256_of
from captune.types import Adapter, Caption, Example, Sample, Score

SUBJECT = "jefpajot"
ENCODERS = {"clip_t": "mini", "clip_i": "mini"}
SKILL = {"base": 0.0, "human": 0.9, "blip": 0.5}  # how often an arm draws the subject when asked
KEPT = {"base": 1.0, "human": 0.8, "blip": 0.75}  # how often an arm draws an ordinary prompt as asked


def drawn_story(
    folder: Path,
    *,
    subject_prompts: int = 16,
    ordinary_prompts: int = 8,
    seeds: int = 2,
    size: int = 64,
    progress: bool = True,
    arms: tuple[str, ...] = ("human", "blip"),
    skill: dict[str, float] | None = None,
) -> Story:
    """A run with the arms named; `skill` is how often each draws the subject when asked to."""
    rng = random.Random(7)
    skill = {**SKILL, **(skill or {})}
    prompts = _prompts(rng, subject_prompts, ordinary_prompts)
    values: dict[str, Any] = {
        "name": "jefpajot",
        "dataset": {"path": "photos", "trigger_word": SUBJECT, "class_word": "creature", "resolution": size},
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 5e-4},
        "sample": {"prompts": [prompt for prompt, _ in prompts], "seeds": list(range(seeds)), "every_epochs": 10},
        "evaluate": {
            "metrics": ["oracle_subject", "clip_i", "clip_t", "oracle_background", "oracle_prompt", "oracle_leak"]
        },
        "arm": [{"name": a, "captioner": {"name": "sidecar" if a == "human" else "blip"}} for a in arms],
    }
    run = folder / "runs" / "jefpajot"
    told = recipe.from_values(values)
    examples = _examples(run, size)
    samples, scores = _samples(run, rng, prompts, seeds, size, ("base", *arms), skill, progress)
    scores += [Score("clip_i", "real", e.id, rng.gauss(0.86, 0.03), "mini", i) for i, e in enumerate(examples)]
    scores += [
        Score("oracle_subject", "real", e.id, float(i != 3), "mini world oracle", i) for i, e in enumerate(examples)
    ]
    facts = {name: _facts(name) for name in told.evaluate.metrics}
    exports = {arm: _exports(run, arm) for arm in arms}
    return Story(
        recipe=told,
        run=run,
        examples=examples,
        captions={arm: _captions(arm, examples) for arm in arms},
        samples=samples,
        scores=scores,
        intervals=compare.summarize(scores, told.evaluate),
        comparisons=compare.compare(scores, told.evaluate, {n: f.higher_is_better for n, f in facts.items()}),
        metrics=facts,
        losses={arm: _losses(arm, 120) for arm in arms},
        costs=_costs(arms),
        adapters={
            arm: Adapter(arm, exports[arm][0], "sd", 8, 8.0, 0, 44, 60, sha256_of(exports[arm][0])) for arm in arms
        },
        exports=exports,
        tokens={"human": {examples[1].id: (52, 48)}},
    )


def fake_metric(name: str) -> Any:
    """The metric's class, which carries its facts."""
    from captune import parts

    return parts.load("metric", metrics.METRICS, name)


def _facts(name: str) -> MetricFacts:
    kind = fake_metric(name)
    encoder = ENCODERS.get(name, "mini world oracle")
    return MetricFacts(name, kind.title, kind.meaning, kind.higher_is_better, kind.judges, encoder)


def _prompts(rng: random.Random, subject_prompts: int, ordinary_prompts: int) -> list[tuple[str, world.Scene]]:
    """Prompts with the scene that each asks for."""
    prompts = []
    for index in range(subject_prompts):
        scene = dataclasses.replace(subjects.subject_scene(SUBJECT, rng), background=world.BACKGROUNDS[index % 8])
        prompts.append((grammar.describe(scene, "short", rng, name=SUBJECT), scene))
    for _ in range(ordinary_prompts):
        scene = world.random_scene(rng, two_share=0.25)
        prompts.append((grammar.describe(scene, "short", rng), scene))
    return prompts


def _examples(run: Path, size: int) -> list[Example]:
    examples = []
    for index, scene in enumerate(subjects.training_scenes(SUBJECT)):
        path = run / "prepare" / "images" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        world.draw(scene, size).save(path)
        source = Path(f"photos/{index:02d}.jpg")
        examples.append(Example(f"{index:02d}", path, source, size, size, size, size, 1, sha256_of(path)))
    return examples


def _captions(arm: str, examples: list[Example]) -> list[Caption]:
    rng = random.Random(arm)
    captions = []
    for example, scene in zip(examples, subjects.training_scenes(SUBJECT), strict=True):
        if arm == "human":
            text = grammar.describe(scene, "long", rng, name=SUBJECT)
        else:
            text = f"{SUBJECT}, {grammar.describe(world.random_scene(rng, two_share=0), 'short', rng)}"
        captions.append(Caption(example.id, text, "sidecar" if arm == "human" else "blip"))
    return captions


def _other(rng: random.Random, scene: world.Scene) -> world.Scene:
    """What a model draws that fails: something else before the background asked for."""
    thing = world.random_scene(rng, two_share=0).things[0]
    return dataclasses.replace(scene, things=(dataclasses.replace(thing, place=scene.things[0].place),))


def _samples(
    run: Path,
    rng: random.Random,
    prompts: list[tuple[str, world.Scene]],
    seeds: int,
    size: int,
    arms: tuple[str, ...],
    skill: dict[str, float],
    progress: bool,
) -> tuple[list[Sample], list[Score]]:
    samples, scores = [], []
    for arm in arms:
        place = run / ("base" if arm == "base" else f"arms/{arm}") / "sample" / "pictures"
        place.mkdir(parents=True, exist_ok=True)
        for index, (prompt, scene) in enumerate(prompts):
            asks = SUBJECT in prompt
            for seed in range(seeds):
                right = rng.random() < (skill.get(arm, 0.5) if asks else KEPT.get(arm, 0.8))
                path = place / f"{index:03d}-{seed}.png"
                world.draw(scene if right else _other(rng, scene), size).save(path)
                sample = Sample(arm, prompt, index, seed, path, seconds=0.2)
                samples.append(sample)
                scores += _scores(sample, asks, right, rng)
        if progress and arm != "base":
            samples += _progress(place, arm, prompts[:3], size)
    return samples, scores


def _scores(sample: Sample, asks: bool, right: bool, rng: random.Random) -> list[Score]:
    told = {"clip_t": rng.gauss(0.268 if right else 0.25, 0.02), "oracle_background": float(rng.random() < 0.97)}
    if asks:
        told |= {"oracle_subject": float(right), "clip_i": rng.gauss(0.82 if right else 0.66, 0.04)}
    else:
        told |= {"oracle_prompt": float(right), "oracle_leak": float(sample.arm == "blip" and rng.random() < 0.1)}
    return [
        Score(name, sample.arm, sample.item, value, ENCODERS.get(name, "mini world oracle"), sample.prompt_index)
        for name, value in told.items()
    ]


def _progress(place: Path, arm: str, prompts: list[tuple[str, world.Scene]], size: int) -> list[Sample]:
    rng = random.Random(arm)
    samples = []
    for index, (prompt, scene) in enumerate(prompts):
        for epoch in (10, 20, 30, 40):
            path = place / f"epoch-{epoch:03d}-{index:03d}.png"
            world.draw(scene if epoch > 20 else _other(rng, scene), size).save(path)
            samples.append(Sample(arm, prompt, index, 0, path, epoch=epoch))
    return samples


def _losses(arm: str, steps: int) -> list[dict[str, float]]:
    rng, end = random.Random(arm), 0.12 if arm == "human" else 0.14
    return [
        {"step": s, "epoch": s // 2, "loss": end + 0.2 * math.exp(-s / 25) + abs(rng.gauss(0, 0.03)), "seconds": 0.1}
        for s in range(1, steps + 1)
    ]


def _exports(run: Path, arm: str) -> list[Path]:
    paths = []
    for suffix, count in ((".safetensors", 182_000), (".peft.safetensors", 171_000)):
        path = run / "arms" / arm / "export" / f"jefpajot-{arm}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(arm + suffix).randbytes(count))
        paths.append(path)
    return paths


def _costs(arms: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    costs: dict[str, dict[str, Any]] = {
        "prepare": {
            "seconds": 0.4,
            "skipped": [{"file": "holiday/broken.jpg", "reason": "not a picture: the file is cut off"}],
            "warnings": ["04.jpg and 09.jpg show nearly the same picture"],
            "versions": {"python": "3.11.2", "captune": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        },
        "base/sample": {"seconds": 14.2},
        "evaluate": {"seconds": 3.1},
    }
    for index, arm in enumerate(arms):
        words = {"mean": 21.3, "longest": 52, "cut": 1} if index == 0 else {"mean": 12.1, "longest": 15, "cut": 0}
        costs[f"arms/{arm}/caption"] = {"seconds": 0.1 + index * 2}
        costs[f"arms/{arm}/train"] = {
            "seconds": 31.0 + index,
            "total_steps": 60,
            "pictures_per_second": 15.4,
            "caption_tokens": words,
            "peak_mib": 912.3,
            "inputs": {"base": "ab12" * 16},
        }
        costs[f"arms/{arm}/sample"] = {"seconds": 14.0 + index}
        costs[f"arms/{arm}/export"] = {"seconds": 0.2}
    return costs
