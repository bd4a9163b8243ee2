"""A study's story without any model: pictures drawn in the mini world, scores that follow from what was drawn."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captune import metrics, parts, recipe
from captune.evaluate import compare
from captune.evaluate.stability import stability
from captune.metrics import MetricFacts
from captune.metrics.captions import Scored, score
from captune.mini import grammar, subjects, world
from captune.report import Story
from captune.runs import sha256_of
from captune.tokens import Length
from captune.types import (
    REAL,
    Adapter,
    Caption,
    EpochChoice,
    Example,
    Failure,
    Interval,
    Sample,
    Score,
)

SUBJECT = "jefpajot"
MEASURED = (
    *("oracle_subject", "clip_i", "clip_t", "oracle_prompt", "oracle_leak"),
    *("memorization", "diversity", "reproduction"),
)
BY_CLIP = ("clip_t", "clip_i", "memorization", "diversity", "reproduction")
SKILL = {"base": 0.0, "human": 0.9, "blip": 0.5, "shuffled": 0.3}  # how often an arm draws the subject when asked
KEPT = {"base": 1.0, "human": 0.8, "blip": 0.75}  # how often an arm draws an ordinary prompt as asked
LIMIT = 48  # tokens that the made-up base reads
EPOCHS = (10, 20, 30, 40)


def drawn_story(
    folder: Path,
    *,
    subject_prompts: int = 16,
    ordinary_prompts: int = 8,
    seeds: int = 2,
    size: int = 64,
    progress: bool = True,
    arms: tuple[str, ...] = ("human", "blip"),
    training_seeds: tuple[int, ...] = (0, 1, 2),
    skill: dict[str, float] | None = None,
    failed: tuple[str, int] | None = None,
    held_out: int = 0,
) -> Story:
    """A study of the arms named; `skill` is how often each draws the subject when asked to; `failed` is one training
    that did not end."""
    rng = random.Random(7)
    drawing = _Drawing(folder / "runs" / "jefpajot", rng, {**SKILL, **(skill or {})}, size)
    prompts = _prompts(rng, subject_prompts, ordinary_prompts)
    told = recipe.from_values(_recipe(prompts, seeds, size, arms, training_seeds))
    examples = drawing.examples()
    captions = {arm: _captions(arm, examples) for arm in arms}
    trained = [(arm, seed) for arm in arms for seed in training_seeds if (arm, seed) != failed]
    for arm, training_seed in [("base", 0), *trained]:
        drawing.samples_of(arm, training_seed, prompts, range(seeds))
        drawing.reproduced(arm, training_seed, examples, captions, arms)
        if progress and arm != "base":
            drawing.progress_of(arm, training_seed, prompts[:3])
    scores = [*drawing.scores, *_ceiling(rng, examples)]
    facts = {name: _facts(name) for name in MEASURED}
    adapters = {arm: [drawing.adapter(arm, seed) for a, seed in trained if a == arm] for arm in arms}
    return Story(
        recipe=told,
        run=drawing.run,
        examples=examples[: len(examples) - held_out],
        held_out=examples[len(examples) - held_out :],
        captions=captions,
        samples=drawing.samples,
        scores=scores,
        intervals=compare.summarize(scores, told.judging),
        comparisons=compare.compare(
            scores, told.judging, {name: f.higher_is_better for name, f in facts.items()}, told.primary
        ),
        metrics=facts,
        losses={arm: {seed: _losses(arm, seed, 120) for a, seed in trained if a == arm} for arm in arms},
        costs=_costs(arms, trained),
        adapters=adapters,
        exports={arm: [path for a in adapters[arm] for path in drawing.exported(a)] for arm in arms},
        tokens={arm: {c.example_id: _length(c.text) for c in found} for arm, found in captions.items()},
        caption_scores=_caption_scores(captions, arms),
        matrix=_matrix(arms),
        matrix_held_out=held_out > 0,
        stability=stability(scores, told.primary),
        epochs=[_choice(arm, told.primary) for arm in arms] if progress else [],
        failures=[Failure(*failed, "CUDA ran out of memory; set train.batch_size lower")] if failed else [],
        repeated={"LoRA file": True, "48 pictures": True},
        known_prompts={1: [arms[0]]},
        prompt_tokens=[len(prompt.split()) + 2 for prompt, _ in prompts],
        command="captune run recipes/jefpajot.toml --out runs",
    )


def _recipe(
    prompts: Sequence[tuple[str, world.Scene]],
    seeds: int,
    size: int,
    arms: tuple[str, ...],
    training_seeds: tuple[int, ...],
) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "human": {"captioner": {"name": "sidecar"}, "human_minutes": 14},
        "shuffled": {"shuffled": arms[0]},
    }
    return {
        "name": "jefpajot",
        "dataset": {"path": "photos", "trigger_word": SUBJECT, "class_word": "creature", "resolution": size},
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 5e-4},
        "study": {"training_seeds": list(training_seeds), "caption_references": arms[0]},
        "sample": {"prompts": [prompt for prompt, _ in prompts], "seeds": list(range(seeds)), "every_epochs": 10},
        "evaluate": {"metrics": list(MEASURED)},
        "arm": [{"name": arm, **kinds.get(arm, {"captioner": {"name": "blip"}})} for arm in arms],
    }


def _caption_scores(captions: Mapping[str, Sequence[Caption]], arms: Sequence[str]) -> dict[str, Scored]:
    references = {c.example_id: [c.text] for c in captions[arms[0]]}
    return {arm: score({c.example_id: c.text for c in captions[arm]}, references) for arm in arms[1:]}


def _facts(name: str) -> MetricFacts:
    kind = parts.load("metric", metrics.METRICS, name)
    encoder = "mini" if name in BY_CLIP else "mini world oracle"
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


def _captions(arm: str, examples: Sequence[Example]) -> list[Caption]:
    rng = random.Random(arm)
    captions = []
    for example, scene in zip(examples, subjects.training_scenes(SUBJECT), strict=True):
        if arm == "human":
            text = grammar.describe(scene, "long", rng, name=SUBJECT)
            if example.id == "01":
                text += ", seen from the front on a quiet afternoon" * 6
        else:
            text = f"{SUBJECT}, {grammar.describe(world.random_scene(rng, two_share=0), 'short', rng)}"
        captions.append(Caption(example.id, text, "sidecar" if arm == "human" else "blip"))
    return captions


def _length(text: str) -> Length:
    """A word is a token here; beginning and end are two more."""
    words = text.split()
    return Length(len(words) + 2, LIMIT, " ".join(words[LIMIT - 2 :]))


class _Drawing:
    """Draws into the run folder and scores what it draws."""

    def __init__(self, run: Path, rng: random.Random, skill: dict[str, float], size: int) -> None:
        self.run, self.rng, self.skill, self.size = run, rng, skill, size
        self.samples: list[Sample] = []
        self.scores: list[Score] = []

    def examples(self) -> list[Example]:
        found = []
        for index, scene in enumerate(subjects.training_scenes(SUBJECT)):
            path = self._draw(scene, Path("prepare/images") / f"{index:02d}.png")
            source, side = Path(f"photos/{index:02d}.jpg"), self.size
            found.append(Example(f"{index:02d}", path, source, side, side, side, side, 1, sha256_of(path)))
        return found

    def samples_of(
        self, arm: str, training_seed: int, prompts: Sequence[tuple[str, world.Scene]], seeds: Iterable[int]
    ) -> None:
        seeds = list(seeds)
        luck = self.rng.gauss(0, 0.03)  # of this training
        for index, (prompt, scene) in enumerate(prompts):
            asks = SUBJECT in prompt
            for seed in seeds:
                right = self.rng.random() < luck + (self.skill.get(arm, 0.5) if asks else KEPT.get(arm, 0.8))
                path = self._draw(
                    scene if right else self._other(scene),
                    _place(arm, training_seed) / f"sample/{index:03d}-{seed}.png",
                )
                sample = Sample(arm, prompt, index, seed, path, training_seed, seconds=0.2)
                self.samples.append(sample)
                self._score(sample, asks, right)

    def reproduced(
        self,
        arm: str,
        training_seed: int,
        examples: Sequence[Example],
        captions: dict[str, list[Caption]],
        arms: Sequence[str],
    ) -> None:
        scenes = subjects.training_scenes(SUBJECT)
        for asked in arms if arm == "base" else [arm]:
            for index, (example, caption) in enumerate(zip(examples, captions[asked], strict=True)):
                right = self.rng.random() < self.skill.get(arm, 0.5)
                place = _place(arm, training_seed) / "reproduction" / asked / f"{index:03d}.png"
                path = self._draw(scenes[index] if right else self._other(scenes[index]), place)
                sample = Sample(arm, caption.text, index, 0, path, training_seed, of=example.id)
                self.samples.append(sample)
                if arm != "base":
                    worth = self.rng.gauss(0.2 if right else 0.02, 0.03)
                    self.scores.append(Score("reproduction", arm, sample.item, worth, "mini", index, training_seed))

    def progress_of(self, arm: str, training_seed: int, prompts: Sequence[tuple[str, world.Scene]]) -> None:
        for index, (prompt, scene) in enumerate(prompts):
            for epoch in EPOCHS:
                place = _place(arm, training_seed) / f"progress/{epoch:03d}-{index:03d}.png"
                path = self._draw(scene if epoch > 20 else self._other(scene), place)
                self.samples.append(Sample(arm, prompt, index, 0, path, training_seed, epoch=epoch))

    def adapter(self, arm: str, seed: int) -> Adapter:
        path = self.run / _place(arm, seed) / "train" / "adapter.safetensors"
        _write(path, f"{arm}{seed}", 1000)
        return Adapter(arm, path, "sd", 8, 8.0, seed, 44, 60, sha256_of(path))

    def exported(self, adapter: Adapter) -> list[Path]:
        found = []
        for suffix, count in ((".safetensors", 182_000), (".diffusers.safetensors", 171_000)):
            name = f"jefpajot-{adapter.arm}-seed{adapter.training_seed}{suffix}"
            path = self.run / _place(adapter.arm, adapter.training_seed) / "export" / name
            _write(path, name, count)
            found.append(path)
        return found

    def _draw(self, scene: world.Scene, place: Path) -> Path:
        path = self.run / place
        path.parent.mkdir(parents=True, exist_ok=True)
        world.draw(scene, self.size).save(path)
        return path

    def _other(self, scene: world.Scene) -> world.Scene:
        """What a model draws that fails: something else before the background asked for."""
        thing = world.random_scene(self.rng, two_share=0).things[0]
        return dataclasses.replace(scene, things=(dataclasses.replace(thing, place=scene.things[0].place),))

    def _score(self, sample: Sample, asks: bool, right: bool) -> None:
        gauss = self.rng.gauss
        told = {"clip_t": gauss(0.268 if right else 0.25, 0.02), "diversity": gauss(0.2 if right else 0.3, 0.03)}
        if asks:
            told |= {"oracle_subject": float(right), "clip_i": gauss(0.82 if right else 0.66, 0.04)}
            told |= {"memorization": min(1.0, max(0.0, gauss(0.6 if right else 0.1, 0.1)))}
        else:
            leaks = sample.arm == "blip" and self.rng.random() < 0.1
            told |= {"oracle_prompt": float(right), "oracle_leak": float(leaks)}
        self.scores += [
            Score(
                name,
                sample.arm,
                sample.item,
                number,
                "mini" if name in BY_CLIP else "mini world oracle",
                sample.prompt_index,
                sample.training_seed,
            )
            for name, number in told.items()
        ]


def _place(arm: str, training_seed: int) -> Path:
    return Path("base") if arm == "base" else Path(f"arms/{arm}/seed-{training_seed}")


def _write(path: Path, words: str, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(words).randbytes(count))


def _ceiling(rng: random.Random, examples: Sequence[Example]) -> list[Score]:
    return [
        score
        for index, example in enumerate(examples)
        for score in (
            Score("clip_i", REAL, example.id, rng.gauss(0.86, 0.03), "mini", index),
            Score("oracle_subject", REAL, example.id, float(index != 3), "mini world oracle", index),
        )
    ]


def _matrix(arms: Sequence[str]) -> dict[str, dict[str, Interval]]:
    def loss(owner: str, captions: str) -> Interval:
        rng = random.Random(owner + captions)
        mean = 0.171 + rng.gauss(0, 0.002) - (0 if owner == "base" else 0.03) - (0.012 if owner == captions else 0)
        return Interval(mean, mean - 0.004, mean + 0.004, 36, 12)

    return {owner: {captions: loss(owner, captions) for captions in arms} for owner in ("base", *arms)}


def _choice(arm: str, metric: str) -> EpochChoice:
    means = tuple(zip(EPOCHS, (0.05, 0.31, 0.88, 0.90), strict=True))
    rule = "the earliest epoch whose mean score is within one standard error of the best"
    return EpochChoice(arm, metric, means, 40 if arm == "human" else 30, rule)


def _losses(arm: str, seed: int, steps: int) -> list[dict[str, float]]:
    rng, end = random.Random(f"{arm}{seed}"), 0.12 if arm == "human" else 0.14
    return [
        {"step": s, "epoch": s // 2, "loss": end + 0.2 * math.exp(-s / 25) + abs(rng.gauss(0, 0.03)), "seconds": 0.1}
        for s in range(1, steps + 1)
    ]


def _costs(arms: tuple[str, ...], trained: Sequence[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    costs: dict[str, dict[str, Any]] = {
        "prepare": {
            "seconds": 0.4,
            "skipped": [{"file": "holiday/broken.jpg", "reason": "not a picture: the file is cut off"}],
            "warnings": ["04.jpg and 09.jpg show nearly the same picture"],
            "versions": {"python": "3.11.2", "captune": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
            "machine": "2 cores, x86_64, Linux",
        },
        "latents": {"seconds": 1.2},
        "base/sample": {"seconds": 14.2},
        "denoising": {"seconds": 8.1},
        "evaluate": {"seconds": 3.1},
        "repeat/train": {"seconds": 31.0},
    }
    for index, arm in enumerate(arms):
        costs[f"arms/{arm}/caption"] = {"seconds": 0.1 + index * 2, **({"api_tokens": 5120} if arm == "gpt" else {})}
        costs[f"base/reproduction/{arm}"] = {"seconds": 2.0}
    for arm, seed in trained:
        place = f"arms/{arm}/seed-{seed}"
        costs[f"{place}/train"] = {
            "seconds": 31.0 + seed,
            "training_seconds": 30.0 + seed,
            "total_steps": 60,
            "pictures_per_second": 15.4,
            "peak_mib": 912.3,
            "inputs": {"base": "ab12" * 16},
        }
        costs[f"{place}/sample"] = {"seconds": 14.0 + seed}
        costs[f"{place}/reproduction"] = {"seconds": 2.0}
        costs[f"{place}/export"] = {"seconds": 0.2}
    return costs
