"""Trains one arm's LoRA on a frozen diffusion model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from captune import adapters, randomness
from captune.families import Family
from captune.progress import Progress
from captune.recipe import TrainSection
from captune.runs import StageFolder, sha256_of, write_json
from captune.train import batches, objective, optimizers
from captune.train.batches import Batch
from captune.train.cache import Latents, Texts
from captune.train.loop import Loop, fit
from captune.train.plan import count_steps
from captune.types import Adapter, Caption, Example

AfterEpoch = Callable[[Adapter], None]


def train_lora(
    section: TrainSection,
    arm: str,
    base: str,
    examples: Sequence[Example],
    captions: Sequence[Caption],
    latents: Callable[[], Latents],
    load_family: Callable[[], Family],
    folder: StageFolder,
    progress: Progress,
    *,
    snapshot_every: int | None = None,
    after_epoch: AfterEpoch | None = None,
) -> Adapter:
    """Train the LoRA of one arm, or continue it, or return it if it is done.

    `base` is the base model's identity; `examples` may hold regularization images, their weight below or beside 1.
    `after_epoch` is called with a snapshot every `snapshot_every` epochs, the model still holding the adapter.
    """
    texts = {c.example_id: c.text for c in captions}
    said = [texts[e.id] for e in examples]
    inputs = {
        "train": section.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
        "base": base,
        "examples": [[e.id, e.sha256, e.repeats, e.weight] for e in examples],
        "captions": said,
        "snapshots": snapshot_every,
    }
    path = folder.path / "adapter.safetensors"
    facts = folder.manifest()
    if folder.done(inputs):
        return _record(arm, path, section, facts["family"], facts["epochs"], facts["total_steps"])
    folder.begin(inputs, keep=True)
    family = load_family()
    sizes: dict[tuple[int, int], int] = {}
    for e in examples:
        sizes[e.width, e.height] = sizes.get((e.width, e.height), 0) + e.repeats
    length = count_steps(
        sizes, section.batch_size, section.gradient_accumulation, epochs=section.epochs, steps=section.steps
    )
    spec = lora_spec(section, family)
    adapters.remove(family.components)
    adapters.inject(family.components, spec, section.seed)
    try:
        parameters = adapters.parameters(family.components)
        optimizer = optimizers.build_optimizer(section, parameters)
        losses_of = _losses(section, family, examples, said, latents())
        header = {
            "arm": arm,
            "family": family.name,
            "base": base,
            "objective": family.objective,
            "seed": str(section.seed),
        }

        def store(epoch: int, step: int, where: Path) -> Adapter:
            adapters.save(where, adapters.weights_of(family.components), spec, {**header, "epoch": str(epoch)})
            return _record(arm, where, section, family.name, epoch, step)

        def close_epoch(epoch: int, step: int) -> None:
            folder.pause(inputs)
            wanted = section.save_every_epochs
            if wanted and epoch % wanted == 0:
                store(epoch, step, folder.path / f"epoch-{epoch:03d}.safetensors")
            if after_epoch and snapshot_every and epoch % snapshot_every == 0:
                after_epoch(_record(arm, path, section, family.name, epoch, step))

        loop = Loop(
            title=f"train {arm}",
            folder=folder.path,
            epochs=length.epochs,
            total_steps=length.total_steps,
            checkpoint_every=section.checkpoint_every_steps,
            max_grad_norm=section.max_grad_norm,
            cpu=family.device.type == "cpu",
        )
        state = fit(
            loop,
            parameters,
            optimizer,
            lambda epoch: batches.epoch_steps(
                examples, epoch, section.batch_size, section.gradient_accumulation, section.seed
            ),
            losses_of,
            lambda step: optimizers.set_learning_rate(
                optimizer, optimizers.lr_factor(section, step, length.total_steps)
            ),
            lambda index: examples[index].id,
            progress,
            close_epoch,
        )
        adapter = store(length.epochs, length.total_steps, path)
    finally:
        adapters.remove(family.components)
    tokens = caption_tokens(family, said)
    write_json(folder.path / "tokens.json", tokens)
    folder.finish(
        inputs,
        [path, folder.path / "losses.jsonl"],
        family=family.name,
        epochs=length.epochs,
        total_steps=length.total_steps,
        arithmetic=length.arithmetic,
        training_seconds=round(state.seconds, 3),
        pictures_per_second=round(state.pictures / max(state.seconds, 1e-9), 2),
        trainable_parameters=sum(p.numel() for p in parameters.values()),
        caption_tokens={k: v for k, v in tokens.items() if k != "per_caption"},
    )
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return adapter


def lora_spec(section: TrainSection, family: Family) -> adapters.LoraSpec:
    """The LoRA's shape: the section's targets in this family's names."""
    targets = {"unet": adapters.patterns(section.targets, family.targets["unet"].presets, "unet")}
    if section.text_encoder_learning_rate is not None:
        targets["text_encoder"] = family.targets["text_encoder"].presets["all"]
    return adapters.LoraSpec(section.rank, section.alpha, targets, section.dropout)


def caption_tokens(family: Family, captions: Sequence[str]) -> dict[str, object]:
    """How long the captions are in the base's own tokens, and how many are cut."""
    counts = [family.count_tokens(text) for text in captions]
    lengths = [n for n, _ in counts]
    return {
        "mean": round(statistics.fmean(lengths), 2),
        "longest": max(lengths),
        "limit": counts[0][1],
        "cut": sum(n > limit for n, limit in counts),
        "per_caption": lengths,
    }


def _record(arm: str, path: Path, section: TrainSection, family: str, epoch: int, step: int) -> Adapter:
    digest = sha256_of(path) if path.exists() else ""
    return Adapter(arm, path, family, section.rank, section.alpha, section.seed, epoch, step, digest)


def _losses(
    section: TrainSection, family: Family, examples: Sequence[Example], captions: Sequence[str], latents: Latents
) -> Callable[[Batch], Tensor]:
    """The training step's loss: per-picture losses (batch,) of a batch, every draw keyed by (seed, example id, visit)."""
    train_text = section.text_encoder_learning_rate is not None
    cached = None if train_text else Texts(family, captions)
    seed, schedule = section.seed, family.alphas_cumprod
    weights = torch.tensor([e.weight for e in examples])
    stacked: Mapping[str, Tensor] = latents

    def losses_of(batch: Batch) -> Tensor:
        rows, noises, timesteps, said = [], [], [], []
        for visit in batch:
            who = (seed, examples[visit.index].id, visit.number)
            flipped = section.flip and randomness.uniform("flip", *who) < 0.5
            picture = stacked[f"{examples[visit.index].id}|flip" if flipped else examples[visit.index].id]
            noise = randomness.normal(picture.shape, "noise", *who)
            if section.noise_offset:
                offset = randomness.normal((picture.shape[0], 1, 1), "noise_offset", *who)
                noise = objective.offset_noise(noise, offset, section.noise_offset)
            dropped = section.caption_dropout and randomness.uniform("caption_dropout", *who) < section.caption_dropout
            rows.append(picture)
            noises.append(noise)
            timesteps.append(randomness.integer(len(schedule), "timestep", *who))
            said.append("" if dropped else captions[visit.index])
        if section.dropout:  # the adapter's own dropout is torch's: keyed by the batch it falls on
            torch.manual_seed(randomness.key(seed, "dropout", *(n for v in batch for n in (v.index, v.number))))
        x, noise = torch.stack(rows).to(family.device), torch.stack(noises).to(family.device)
        t = torch.tensor(timesteps)
        a = schedule[t].to(family.device)
        conditioning = cached(said) if cached else family.encode_prompts(said)
        model_pred = family.predict(objective.add_noise(x, noise, a), t.to(family.device), conditioning)
        target = objective.target(x, noise, a, family.objective)
        loss = objective.per_picture_loss(model_pred, target)
        if section.min_snr_gamma:
            snr = objective.signal_to_noise(a)
            loss = loss * objective.min_snr_weight(snr, section.min_snr_gamma, family.objective)
        return loss * weights[[v.index for v in batch]].to(loss.device)

    return losses_of
