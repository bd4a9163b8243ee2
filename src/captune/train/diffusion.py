"""Trains one arm's LoRA on a frozen diffusion model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from captune import adapters, objective, randomness
from captune.captions import option_warnings
from captune.families import Extent, Family
from captune.progress import Progress
from captune.recipe import TrainSection
from captune.runs import StageFolder, sha256_of
from captune.train import batches, optimizers
from captune.train.batches import Batch
from captune.train.cache import Latents, mask_files, read_masks
from captune.train.execution import executed
from captune.train.loop import Loop, fit
from captune.train.noise import Who, noise_of, perturbed, schedule_of, timestep_of
from captune.train.plan import count_steps
from captune.train.words import Words
from captune.train.words import said as words_of
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
    title: str = "",
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
    masks = mask_files(examples) if section.masked_loss else {}
    if section.masked_loss:
        inputs["masks"] = {name: sha256_of(file) for name, file in masks.items()}
    path = folder.path / "adapter.safetensors"
    facts = folder.manifest()
    if folder.done(inputs):
        return _record(arm, path, section, facts["family"], facts["epochs"], facts["total_steps"])
    folder.begin(inputs, keep=True)
    optimizers.check(section)
    for line in option_warnings(section, said):
        progress.say(f"{title or arm}: {line}")
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
        losses_of = _losses(section, family, examples, said, latents(), masks)
        header = {
            "family": family.name,
            "version": family.version,
            "base": base,
            "objective": family.objective,
            "seed": str(section.seed),
        }
        if section.kind in ("loha", "lokr"):
            header["kernels"] = json.dumps(adapters.kernels(family.components), sort_keys=True)

        def store(epoch: int, step: int, where: Path) -> Adapter:
            with optimizers.result(optimizer):
                adapters.save(where, adapters.weights_of(family.components), spec, {**header, "epoch": str(epoch)})
            return _record(arm, where, section, family.name, epoch, step)

        def close_epoch(epoch: int, step: int) -> None:
            folder.pause(inputs)
            wanted = section.save_every_epochs
            if wanted and epoch % wanted == 0:
                store(epoch, step, folder.path / f"epoch-{epoch:03d}.safetensors")
            if after_epoch and snapshot_every and epoch % snapshot_every == 0:
                with optimizers.result(optimizer), _at_rest(family):
                    after_epoch(_record(arm, path, section, family.name, epoch, step))

        loop = Loop(
            title=title or f"train {arm}",
            folder=folder.path,
            epochs=length.epochs,
            total_steps=length.total_steps,
            checkpoint_every=section.checkpoint_every_steps,
            max_grad_norm=section.max_grad_norm,
            cpu=family.device.type == "cpu",
        )
        with executed(section, family), adapters.dropping(family.components):
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
    )
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return adapter


def lora_spec(section: TrainSection, family: Family) -> adapters.LoraSpec:
    """The LoRA's shape: the section's targets in this family's names."""
    presets = family.targets[family.denoiser].presets
    targets = {family.denoiser: adapters.patterns(section.targets, presets, family.denoiser)}
    if section.text_encoder_learning_rate is not None:
        encoders = [name for name in family.targets if name != family.denoiser]
        targets |= {name: family.targets[name].presets["all"] for name in encoders}
    return adapters.LoraSpec(section.rank, section.alpha, targets, section.dropout, section.kind, section.ranks)


@contextmanager
def _at_rest(family: Family) -> Iterator[None]:
    """The model as pictures are drawn with it: no dropout, and nothing compiled for shapes that training has not."""
    with adapters.dropping(family.components, on=False), torch.compiler.set_stance("force_eager"):
        yield


def _record(arm: str, path: Path, section: TrainSection, family: str, epoch: int, step: int) -> Adapter:
    digest = sha256_of(path) if path.exists() else ""
    return Adapter(arm, path, family, section.rank, section.alpha, section.seed, epoch, step, digest)


def _losses(
    section: TrainSection,
    family: Family,
    examples: Sequence[Example],
    captions: Sequence[str],
    latents: Latents,
    masks: Mapping[str, Path],
) -> Callable[[Batch], Tensor]:
    """The training step's loss: per-picture losses (batch,) of a batch, every draw keyed by (seed, example id, visit)."""
    words = Words(section, family, captions)
    schedule = schedule_of(section, family)
    learned = read_masks(masks, examples, latents)
    weights = torch.tensor([e.weight for e in examples])

    def losses_of(batch: Batch) -> Tensor:
        of = [examples[visit.index] for visit in batch]
        who: list[Who] = [(section.seed, e.id, visit.number) for e, visit in zip(of, batch, strict=True)]
        flipped = [section.flip and randomness.uniform("flip", *w) < 0.5 for w in who]
        pictures = [latents[f"{e.id}|flip" if mirrored else e.id] for e, mirrored in zip(of, flipped, strict=True)]
        drawn = [noise_of(section, x.shape, w) for x, w in zip(pictures, who, strict=True)]
        noise = _rows(drawn, family)
        added = _rows([perturbed(section, n, w) for n, w in zip(drawn, who, strict=True)], family)
        t = _rows([timestep_of(section, schedule, x.shape, w) for x, w in zip(pictures, who, strict=True)], family)
        x = _rows(pictures, family)
        if section.dropout:  # the adapter's own dropout is torch's: keyed by the batch it falls on, text encoders' too
            torch.manual_seed(randomness.key(section.seed, "dropout", *(n for v in batch for n in (v.index, v.number))))
        conditioning = words([words_of(section, captions[v.index], w) for v, w in zip(batch, who, strict=True)])
        conditioning = family.with_extents(conditioning, [Extent.of(e) for e in of])
        model_pred = family.predict(schedule.add_noise(x, added, t), t, conditioning)
        areas = [_mask(learned, e.id, p, m) for e, p, m in zip(of, pictures, flipped, strict=True)] if learned else None
        mask = _rows(areas, family) if areas else None
        loss = objective.per_picture_loss(model_pred, schedule.target(x, noise, t), section.loss, section.huber_c, mask)
        snr = schedule.signal_to_noise(t)
        if section.min_snr_gamma and snr is not None:
            loss = loss * objective.min_snr_weight(snr, section.min_snr_gamma, family.objective)
        if section.debiased_estimation and snr is not None:
            loss = loss * objective.debiased_weight(snr, family.objective)
        return loss * weights[[v.index for v in batch]].to(loss.device)

    return losses_of


def _rows(tensors: Sequence[Tensor], family: Family) -> Tensor:
    return torch.stack(list(tensors)).to(family.device)


def _mask(learned: Mapping[str, Tensor], example: str, latents: Tensor, mirrored: bool) -> Tensor:
    """What is learned of a visit's picture (1, h, w): all of it where there is no mask."""
    mask = learned.get(example)
    if mask is None:
        return torch.ones(1, *latents.shape[-2:])
    return mask.flip(-1) if mirrored else mask
