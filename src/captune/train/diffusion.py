"""Trains one arm's LoRA on a frozen diffusion model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from captune import adapters, families, objective, randomness
from captune.captions import option_warnings
from captune.families import Extent, Family
from captune.progress import Progress, Silent
from captune.recipe import BaseSection, TrainSection
from captune.runs import StageFolder, sha256_of
from captune.train import batches, kept, optimizers
from captune.train.batches import Batch
from captune.train.cache import Latents, mask_files, read_masks
from captune.train.crew import Crew
from captune.train.dropout import key_dropout
from captune.train.execution import executed
from captune.train.loop import Loop, State, Watch, best_epoch, fit
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
    watch: Watch | None = None,
    crew: Callable[[], Crew] = Crew,
    base_section: BaseSection | None = None,
) -> Adapter:
    """Train the LoRA of one arm, or continue it, or return it if it is done.

    `base` is the base model's identity; `examples` may hold regularization images, their weight below or beside 1.
    `after_epoch` is called with a snapshot every `snapshot_every` epochs, the model still holding the adapter; what `watch`
    measures after every epoch tells the best one, and when to stop. Other processes of a crew load `base_section` themselves.
    """
    texts = {c.example_id: c.text for c in captions}
    said = [texts[e.id] for e in examples]
    inputs = {
        "train": section.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
        "base": base,
        "examples": [[e.id, e.sha256, e.repeats, e.weight] for e in examples],
        "captions": said,
        "snapshots": snapshot_every,
        **({"watched": watch.made_of} if watch else {}),
    }
    masks = mask_files(examples, beside=section.masked_loss)
    if masks:
        inputs["masks"] = {name: [sha256_of(file) for file in files] for name, files in masks.items()}
    path = folder.path / "adapter.safetensors"
    facts = folder.manifest()
    if folder.done(inputs):
        return _record(arm, path, section, facts["family"], facts["epochs_done"], facts["steps_done"])
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
    loop = Loop(
        title=title or f"train {arm}",
        folder=folder.path,
        epochs=length.epochs,
        total_steps=length.total_steps,
        checkpoint_every=section.checkpoint_every_steps,
        max_grad_norm=section.max_grad_norm,
        ema=section.ema,
        save_every=section.save_every_steps,
        stop_after=section.stop_after,
    )
    told = (section, examples, said, latents(), masks)
    adapters.remove(family.components)

    def store(state: State, where: Path) -> Adapter:
        spec = lora_spec(section, family)
        facts = {**_header(section, family, base), "epoch": str(state.epoch)}
        adapters.save(where, adapters.weights_of(family.components), spec, facts)
        return _record(arm, where, section, family.name, state.epoch, state.step)

    def keep(state: State) -> None:
        store(state, kept.of_step(folder.path, state.step))
        kept.drop_oldest(folder.path, section.keep_last, length.steps_per_epoch)

    def close_epoch(state: State) -> None:
        if state.held_out and best_epoch(state.held_out) == state.epoch:
            store(state, folder.path / kept.BEST)
        if section.save_every_epochs and state.epoch % section.save_every_epochs == 0:
            store(state, kept.of_epoch(folder.path, state.epoch))
            kept.drop_oldest(folder.path, section.keep_last, length.steps_per_epoch)
        if after_epoch and snapshot_every and state.epoch % snapshot_every == 0:
            with _at_rest(family):
                after_epoch(_record(arm, path, section, family.name, state.epoch, state.step))

    try:
        together = crew()
        with together.at_work(_follow, base_section, loop, *told, watch is not None):
            state = _fit(
                together, loop, family, *told, progress, close_epoch, keep, lambda: folder.pause(inputs), watch
            )
        adapter = store(state, path)
        trainable = sum(p.numel() for p in adapters.parameters(family.components).values())
    finally:
        adapters.remove(family.components)
    folder.finish(
        inputs,
        [path, folder.path / "losses.jsonl", *([folder.path / kept.BEST] if state.held_out else [])],
        family=family.name,
        epochs=length.epochs,
        total_steps=length.total_steps,
        epochs_done=state.epoch,
        steps_done=state.step,
        arithmetic=length.arithmetic,
        processes=together.size,
        training_seconds=round(state.seconds, 3),
        pictures_per_second=round(state.pictures / max(state.seconds, 1e-9), 2),
        trainable_parameters=trainable,
        **_peak_on_gpu(family),
        **kept.facts(state, section.stop_after, length.steps_per_epoch, length.total_steps),
    )
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return adapter


def _peak_on_gpu(family: Family) -> dict[str, float]:
    if family.device.type != "cuda":
        return {}
    return {"peak_gpu_mib": round(torch.cuda.max_memory_allocated(family.device) / 2**20, 1)}


def _header(section: TrainSection, family: Family, base: str) -> dict[str, str]:
    """What an adapter's file says of its training, beside its shape."""
    told = {
        "family": family.name,
        "version": family.version,
        "base": base,
        "objective": family.objective,
        "seed": str(section.seed),
    }
    if section.kind in ("loha", "lokr"):
        told["kernels"] = json.dumps(adapters.kernels(family.components), sort_keys=True)
    return told


def _fit(
    crew: Crew,
    loop: Loop,
    family: Family,
    section: TrainSection,
    examples: Sequence[Example],
    said: Sequence[str],
    latents: Latents,
    masks: Mapping[str, Sequence[Path]],
    progress: Progress,
    after_epoch: Callable[[State], None] = lambda state: None,
    keep: Callable[[State], None] | None = None,
    saved: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
) -> State:
    """Put a fresh adapter into the family and train it: the same in every process of a crew, callbacks apart."""
    adapters.inject(family.components, lora_spec(section, family), section.seed)
    parameters = adapters.parameters(family.components)
    optimizer = optimizers.build_optimizer(section, parameters)
    losses_of = _losses(section, family, examples, said, latents, masks)

    def measure() -> float:
        assert watch is not None
        with _at_rest(family):
            return watch.loss()

    with executed(section, family), adapters.dropping(family.components):
        return fit(
            loop,
            parameters,
            optimizer,
            lambda epoch: batches.epoch_steps(
                examples, epoch, section.batch_size, section.gradient_accumulation, section.seed
            ),
            losses_of,
            lambda step: optimizers.set_learning_rate(optimizer, optimizers.lr_factor(section, step, loop.total_steps)),
            lambda index: examples[index].id,
            progress,
            after_epoch,
            keep=keep,
            saved=saved,
            held_out_loss=measure if watch else None,
            crew=crew,
        )


def _follow(
    crew: Crew,
    base: BaseSection,
    loop: Loop,
    section: TrainSection,
    examples: Sequence[Example],
    said: Sequence[str],
    latents: Latents,
    masks: Mapping[str, Sequence[Path]],
    measured: bool,
) -> None:
    """The part of a training that falls to every process but the leading one."""
    family = _family(base.model_copy(update={"device": crew.device(base.device)}))
    told = (section, examples, said, latents, masks)
    try:
        _fit(crew, loop, family, *told, Silent(), watch=Watch(lambda: 0.0) if measured else None)
    finally:
        adapters.remove(family.components)


@lru_cache(1)
def _family(base: BaseSection) -> Family:
    """The base, loaded once for all trainings that this process follows."""
    return families.load(base)


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
    masks: Mapping[str, Sequence[Path]],
) -> Callable[[Batch], Tensor]:
    """The training step's loss: per-picture losses (batch,) of a batch, every draw keyed by (seed, example id, visit)."""
    words = Words(section, family, captions)
    schedule = schedule_of(section, family)
    learned = read_masks(masks, examples, latents)
    visits = key_dropout(family.components, section.dropout)
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
        visits.rows = who
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
