"""Stage: the denoising loss of every LoRA on every arm's captions, at fixed timesteps and noise.

A LoRA that only understands its own arm's way of saying things has a low loss on its own captions and a high one on the
others': the off-diagonal of this matrix. Pictures, timesteps and noise are the same for all, so differences are the
captions' and the adapters' alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

import torch

from captune import adapters, objective, randomness
from captune.families import Conditioning, Extent, Family, Reading
from captune.metrics import MetricFacts
from captune.objective import NoiseSchedule
from captune.progress import Progress
from captune.recipe import TrainSection
from captune.runs import StageFolder, read_records, write_records
from captune.types import BASE, Adapter, Caption, CrossLoss, Example, Score

TIMESTEPS = 8  # at the middles of as many equal parts of the schedule
METRIC = "denoising_loss"


def measure_denoising(
    trained: Sequence[Adapter],
    examples: Sequence[Example],
    said: Mapping[str, Sequence[Caption]],
    latents: Callable[[], Mapping[str, torch.Tensor]],
    load_family: Callable[[], Family],
    base: str,
    folder: StageFolder,
    progress: Progress,
    *,
    held_out: bool,
    trained_as: Mapping[str, TrainSection] | None = None,
) -> list[CrossLoss]:
    """Every adapter, and none, on every arm's caption of every example; losses.jsonl grows by one adapter at a time.

    `trained_as` tells, by arm (BASE too), how text is read and the noise schedule ends; as usual where it says nothing.
    """
    as_usual = TrainSection()
    unusual = {
        arm: [s.clip_skip, s.caption_chunks, s.zero_terminal_snr]
        for arm, s in (trained_as or {}).items()
        if Reading.of(s) != Reading() or s.zero_terminal_snr
    }
    inputs = {
        "base": base,
        "adapters": [[a.arm, a.training_seed, a.sha256] for a in trained],
        "examples": [[e.id, e.sha256] for e in examples],
        "captions": {arm: [[c.example_id, c.text] for c in texts] for arm, texts in said.items()},
        "timesteps": TIMESTEPS,
        "held_out": held_out,
        **({"trained_as": unusual} if unusual else {}),
    }
    path = folder.path / "losses.jsonl"
    if folder.done(inputs):
        return read_records(path, CrossLoss)
    folder.begin(inputs, keep=True)
    losses = read_records(path, CrossLoss) if path.exists() else []
    known = {(row.arm, row.training_seed) for row in losses}
    judged: list[tuple[str, int, Adapter | None]] = [(BASE, 0, None)]
    judged += [(adapter.arm, adapter.training_seed, adapter) for adapter in trained]
    family = load_family()
    adapters.remove(family.components)
    with progress.track("denoising loss", len(judged)) as bar:
        for arm, seed, adapter in judged:
            if (arm, seed) not in known:
                how = (trained_as or {}).get(arm, as_usual)
                losses += _of_adapter(adapter, arm, seed, examples, said, latents(), family, held_out, how)
                write_records(path, losses)
            bar.advance()
    folder.finish(inputs, [path], timesteps=_timesteps(family).tolist(), pictures=len(examples), held_out=held_out)
    return losses


def as_scores(losses: Sequence[CrossLoss], base: str) -> list[Score]:
    """Each adapter's loss on its own arm's captions, and the base's on the same captions less nothing: one score a picture.

    The base read every arm's captions; its score is the mean over them.
    """
    order = {row.example_id: index for index, row in enumerate(reversed(losses))}
    index = {name: place for place, name in enumerate(sorted(order, key=lambda n: -order[n]))}
    scores = []
    for row in losses:
        if row.arm == row.captions:
            scores.append(
                Score(METRIC, row.arm, row.example_id, row.loss, base, index[row.example_id], row.training_seed)
            )
    for example in index:
        found = [row.loss for row in losses if row.arm == BASE and row.example_id == example]
        if found:
            scores.append(Score(METRIC, BASE, example, sum(found) / len(found), base, index[example]))
    return scores


def facts(base: str, *, held_out: bool) -> MetricFacts:
    """What the report says about it."""
    where = "pictures that no arm was trained on" if held_out else "the training pictures themselves"
    return MetricFacts(
        METRIC,
        "Denoising loss",
        f"Mean squared error of the prediction for an arm's own captions, at {TIMESTEPS} fixed timesteps and fixed noise, "
        f"on {where}; lower is better; says how well the model expects the pictures, not how its own pictures look.",
        higher_is_better=False,
        judges="denoising",
        encoder=base,
    )


def _timesteps(family: Family) -> torch.Tensor:
    return family.schedule.timesteps((torch.arange(TIMESTEPS, dtype=torch.float64) + 0.5) / TIMESTEPS)


@torch.no_grad()
def _of_adapter(
    adapter: Adapter | None,
    arm: str,
    seed: int,
    examples: Sequence[Example],
    said: Mapping[str, Sequence[Caption]],
    latents: Mapping[str, torch.Tensor],
    family: Family,
    held_out: bool,
    trained_as: TrainSection,
) -> list[CrossLoss]:
    """One adapter's (or the base's) losses, by captions' arm and example."""
    if adapter is not None:
        tensors, spec, _ = adapters.read(adapter.path)
        adapters.inject(family.components, spec, seed=0)
        adapters.set_weights(family.components, tensors)
    try:
        return [
            CrossLoss(arm, seed, captions_of, example.id, loss, held_out)
            for captions_of, texts in said.items()
            for example, loss in _each(examples, texts, latents, family, trained_as)
        ]
    finally:
        adapters.remove(family.components)


@torch.no_grad()
def loss_now(
    examples: Sequence[Example],
    said: Sequence[Caption],
    latents: Mapping[str, torch.Tensor],
    family: Family,
    trained_as: TrainSection,
) -> float:
    """The mean loss on these examples with the adapter that the family holds now: what an early stop watches."""
    return fmean(loss for _, loss in _each(examples, said, latents, family, trained_as))


def _each(
    examples: Sequence[Example],
    said: Sequence[Caption],
    latents: Mapping[str, torch.Tensor],
    family: Family,
    trained_as: TrainSection,
) -> Iterator[tuple[Example, float]]:
    schedule = family.schedule.with_zero_terminal_snr() if trained_as.zero_terminal_snr else family.schedule
    by_id = {c.example_id: c.text for c in said}
    for example in examples:
        conditioning = family.encode_prompts([by_id[example.id]], Reading.of(trained_as))
        conditioning = family.with_extents(conditioning, [Extent.of(example)])
        yield example, _loss(example.id, latents[example.id], conditioning, family, schedule)


def _loss(
    example: str, picture: torch.Tensor, conditioning: Conditioning, family: Family, schedule: NoiseSchedule
) -> float:
    """The mean over the fixed timesteps of the squared error, unweighted, for latents (channels, h, w)."""
    timesteps = _timesteps(family).to(family.device)
    x = picture.to(family.device).expand(len(timesteps), *picture.shape)
    noise = torch.stack([randomness.normal(picture.shape, "denoising", example, k) for k in range(TIMESTEPS)]).to(
        x.device
    )
    many = conditioning.select([0] * len(timesteps))
    model_pred = family.predict(schedule.add_noise(x, noise, timesteps), timesteps, many)
    return float(objective.per_picture_loss(model_pred, schedule.target(x, noise, timesteps)).mean())
