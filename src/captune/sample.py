"""Stage: an adapter (or none) x prompts x seeds -> pictures; the same prompts, seeds and start noise for every arm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from captune import adapters
from captune.families import Family, Reading
from captune.progress import Progress
from captune.recipe import SampleSection, TrainSection
from captune.runs import StageFolder, atomic, read_records, sha256_of, write_records
from captune.types import BASE, Adapter, Caption, Example, Sample

USUAL = TrainSection()
APART = 100_000  # noise seeds of two sampling seeds are this far apart: more than anyone has prompts


def noise_seed(seed: int, prompt_index: int) -> int:
    """The generator seed of a picture. Prompts get noise of their own, so that they are independent witnesses."""
    return seed * APART + prompt_index


def sample_arm(
    section: SampleSection,
    prompts: Sequence[str],
    arm: str,
    base: str,
    adapter: Adapter | None,
    load_family: Callable[[], Family],
    folder: StageFolder,
    progress: Progress,
    *,
    title: str | None = None,
    of: Sequence[str] = (),
    trained_as: TrainSection = USUAL,
) -> list[Sample]:
    """Draw every prompt with every seed, with the arm's adapter or without any; pictures/*.png and samples.jsonl.

    `of` names the examples whose captions the prompts are, if they are; `base` is the base model's identity. `trained_as`
    tells how the text is read and the noise schedule ends, which must be as in training. A stopped run goes on with the
    batches whose pictures are not all there, so every picture is drawn in the batch it always is in.
    """
    inputs = {
        "sample": section.model_dump(mode="json", exclude={"every_epochs", "progress_prompts", "prompts"}),
        "prompts": list(prompts),
        "base": base,
        "adapter": adapter.sha256 if adapter else None,
        **({"of": list(of)} if of else {}),
        **_unusual(trained_as),
    }
    records = folder.path / "samples.jsonl"
    if folder.done(inputs):
        return read_records(records, Sample)
    folder.begin(inputs, keep=True)
    family = load_family()
    adapters.remove(family.components)
    if adapter:
        tensors, spec, _ = adapters.read(adapter.path)
        adapters.inject(family.components, spec, seed=0)
        adapters.set_weights(family.components, tensors)
    wanted = [(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in section.seeds]
    samples: list[Sample] = []
    try:
        with progress.track(title or f"sample {arm}", len(wanted)) as bar:
            for start in range(0, len(wanted), section.batch_size):
                chunk = wanted[start : start + section.batch_size]
                samples += _draw(section, chunk, arm, adapter, family, folder.path / "pictures", 0, trained_as)
                bar.advance(len(chunk))
    finally:
        adapters.remove(family.components)
    if of:
        samples = [replace(sample, of=of[sample.prompt_index]) for sample in samples]
    write_records(records, samples)
    folder.finish(inputs, [records, *(s.path for s in samples)], pictures=len(samples))
    return samples


def draw_progress(
    section: SampleSection,
    prompts: Sequence[str],
    adapter: Adapter,
    family: Family,
    folder: Path,
    trained_as: TrainSection = USUAL,
) -> list[Sample]:
    """Draw the first prompts with the first seed while the family holds the adapter as it is after `adapter.epoch`."""
    chosen = [(index, prompt, section.seeds[0]) for index, prompt in enumerate(prompts[: section.progress_prompts])]
    samples = []
    for start in range(0, len(chosen), section.batch_size):
        chunk = chosen[start : start + section.batch_size]
        samples += _draw(section, chunk, adapter.arm, adapter, family, folder, adapter.epoch, trained_as)
    write_records(folder / f"epoch-{adapter.epoch:04d}.jsonl", samples)
    return samples


def read_progress(folder: Path) -> list[Sample]:
    """The progress pictures of an arm, by epoch; those that are gone are left out."""
    found = [s for path in sorted(folder.glob("epoch-*.jsonl")) for s in read_records(path, Sample)]
    return [s for s in found if s.path.is_file()]


def draw_regularization(
    section: SampleSection,
    prompts: Sequence[str],
    count: int,
    side: int,
    repeats: int,
    weight: float,
    base: str,
    load_family: Callable[[], Family],
    folder: StageFolder,
    progress: Progress,
    trained_as: TrainSection = USUAL,
) -> tuple[list[Example], list[Caption]]:
    """`count` pictures of `prompts` in turn, drawn by the base model itself, as training examples with their captions."""
    told = [prompts[i % len(prompts)] for i in range(count)]
    square = section.model_copy(update={"seeds": [0], "width": side, "height": side})
    title = "regularization images"
    samples = sample_arm(
        square, told, BASE, base, None, load_family, folder, progress, title=title, trained_as=trained_as
    )
    examples = [
        Example(
            id=f"regularization/{s.prompt_index:04d}",
            image=s.path,
            source=s.path,
            width=side,
            height=side,
            source_width=side,
            source_height=side,
            repeats=repeats,
            sha256=sha256_of(s.path),
            weight=weight,
        )
        for s in samples
    ]
    return examples, [Caption(e.id, s.prompt, "prompt") for e, s in zip(examples, samples, strict=True)]


def _unusual(trained_as: TrainSection) -> dict[str, object]:
    """What of the training shapes pictures beside the adapter, where it is not as usual."""
    names = ("clip_skip", "caption_chunks", "zero_terminal_snr")
    return {name: getattr(trained_as, name) for name in names if name in trained_as.set_apart}


def _draw(
    section: SampleSection,
    chunk: Sequence[tuple[int, str, int]],
    arm: str,
    adapter: Adapter | None,
    family: Family,
    folder: Path,
    epoch: int,
    trained_as: TrainSection,
) -> list[Sample]:
    suffix = f"-epoch{epoch:04d}" if epoch else ""
    paths = [folder / f"{index:03d}-{seed}{suffix}.png" for index, _, seed in chunk]
    began = time.perf_counter()
    if not all(path.is_file() for path in paths):
        width, height = family.default_size
        pictures = family.generate(
            [prompt for _, prompt, _ in chunk],
            [noise_seed(seed, index) for index, _, seed in chunk],
            steps=section.steps,
            guidance_scale=section.guidance_scale,
            negative_prompt=section.negative_prompt,
            width=section.width or width,
            height=section.height or height,
            reading=Reading.of(trained_as),
            zero_terminal_snr=trained_as.zero_terminal_snr,
        )
        for path, picture in zip(paths, pictures, strict=True):
            with atomic(path) as part:
                picture.save(part, "PNG")
    seconds = (time.perf_counter() - began) / len(chunk)
    training_seed = adapter.training_seed if adapter else 0
    return [
        Sample(arm, prompt, index, seed, path, training_seed, epoch, round(seconds, 4))
        for (index, prompt, seed), path in zip(chunk, paths, strict=True)
    ]
