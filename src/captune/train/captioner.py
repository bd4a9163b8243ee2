"""Trains a LoRA for a captioner, in the same loop as the images' LoRAs: one picture and one of its captions a visit.

The network stays in evaluation mode: its own dropout draws from no seed. The LoRA's dropout is keyed by visit, so a
training that is killed and continued ends with the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captune import adapters, captions, randomness
from captune.captioners._lora import CONFIG, PREFIX, TENSORS
from captune.captioners._model import PictureModel
from captune.captioners._targets import chosen
from captune.errors import RecipeError
from captune.metrics.captions import score
from captune.progress import Progress, Silent
from captune.recipe import TuneSection
from captune.runs import StageFolder, atomic, plain, read_records, write_records, write_text
from captune.tensors import to_bytes
from captune.train import optimizers
from captune.train.batches import Batch, Visit
from captune.train.dropout import key_dropout
from captune.train.loop import Loop, State, best_epoch, fit, stops
from captune.train.memory import layers_checkpointed
from captune.train.plan import tuning_steps
from captune.types import CaptionedPicture

COMPONENT = "captioner"
BEST = "best.safetensors"
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Said:
    """What a captioner said of a picture, and whether it ended by itself."""

    id: str
    text: str
    ended: bool


def check(section: TuneSection) -> None:
    """Raise a RecipeError for an optimizer that is unknown, not installed or not to be had with these settings."""
    try:
        optimizers.check(section.as_training)
    except RecipeError as error:
        raise _of_tune(error) from None


def targets_of(section: TuneSection, network: PictureModel) -> tuple[str, list[str]]:
    """The pattern of the modules that the LoRA changes, and their names; a RecipeError where the section names none."""
    linear = [name for name, module in network.model.named_modules() if isinstance(module, nn.Linear)]
    pattern = chosen(section.targets, network.presets, network.towers, linear)
    return pattern, [name for name in linear if re.fullmatch(pattern, name)]


def train_captioner(
    section: TuneSection,
    base: str,
    load: Callable[[], PictureModel],
    pictures: Sequence[CaptionedPicture],
    folder: StageFolder,
    progress: Progress,
) -> Path:
    """Train the LoRA, or continue it, or return it if it is done: the folder with peft's adapter.

    `base` is the captioner's identity. With validation pictures the result is the best epoch's, else the last one's.
    """
    inputs = {
        "tune": section.model_dump(
            mode="json", exclude={"checkpoint_every_steps", "merged", "metrics", "push", "device"}
        ),
        "base": base,
        "pictures": [[p.id, p.sha256, p.references, p.split] for p in pictures if p.split != "test"],
    }
    if folder.done(inputs):
        return folder.path
    folder.begin(inputs, keep=True)
    network = load()
    training = _Training(section, network, pictures, folder, progress)
    for line in training.warnings:
        progress.say(line)
    try:
        state = training.run(inputs)
        write_adapter(folder.path, section, training.pattern, adapters.weights_of(training.parts))
        trainable = sum(p.numel() for p in adapters.parameters(training.parts).values())
    finally:
        adapters.remove(training.parts)
    folder.finish(
        inputs,
        [folder.path / name for name in (TENSORS, CONFIG, "losses.jsonl")],
        total_steps=training.length.total_steps,
        epochs=training.length.epochs,
        arithmetic=training.length.arithmetic,
        steps_done=state.step,
        epochs_done=state.epoch,
        trainable_parameters=trainable,
        targets=training.pattern,
        modules=len(training.modules),
        training_seconds=round(state.seconds, 3),
        pictures_per_second=round(state.pictures / max(state.seconds, 1e-9), 2),
        warnings=training.warnings,
        **_watched(section, state, training.length.total_steps),
    )
    (folder.path / "checkpoint.pt").unlink(missing_ok=True)
    return folder.path


def write_captions(
    network: Callable[[], PictureModel],
    identity: str,
    pictures: Sequence[CaptionedPicture],
    folder: StageFolder,
    progress: Progress,
    title: str,
) -> list[Said]:
    """What the captioner says of the pictures, once for equal pictures and the same captioner (`identity`)."""
    inputs = {"captioner": identity, "pictures": [[p.id, p.sha256] for p in pictures]}
    records = folder.path / "captions.jsonl"
    if folder.done(inputs):
        return read_records(records, Said)
    folder.begin(inputs)
    said = say_all(network(), pictures, progress, title)
    write_records(records, said)
    folder.finish(inputs, [records], captions=len(said), ended=sum(s.ended for s in said))
    return said


def say_all(network: PictureModel, pictures: Sequence[CaptionedPicture], progress: Progress, title: str) -> list[Said]:
    """A caption of every picture, in batches of the captioner's batch_size."""
    size, said = network.section.batch_size, list[Said]()
    with progress.track(title, len(pictures)) as bar:
        for start in range(0, len(pictures), size):
            batch = pictures[start : start + size]
            written = network.write(network.look([p.image for p in batch]))
            said += [Said(p.id, w.text, w.ended) for p, w in zip(batch, written, strict=True)]
            bar.advance(len(batch), written[-1].text)
    return said


def scored_texts(
    said: Sequence[Said], pictures: Sequence[CaptionedPicture], prompt: str
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Candidates and references by picture; the prompt, which the captioner does not say by itself, is taken off both."""
    start = captions.one_line(prompt)
    candidates = {s.id: captions.without_start(s.text, start) for s in said}
    return candidates, {p.id: [captions.without_start(r, start) for r in p.references] for p in pictures}


def write_adapter(folder: Path, section: TuneSection, pattern: str, weights: dict[str, Tensor]) -> None:
    """The folder that peft loads: adapter_config.json, and the weights under peft's names with repeatable bytes."""
    from peft import LoraConfig

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=pattern,
        bias="none",
        base_model_name_or_path=section.captioner.model,
        inference_mode=True,
    )
    values = {name: getattr(value, "value", value) for name, value in config.to_dict().items()}
    write_text(folder / CONFIG, json.dumps(plain(values), indent=2, sort_keys=True) + "\n")
    renamed = {PREFIX + name.removeprefix(f"{COMPONENT}."): value for name, value in weights.items()}
    with atomic(folder / TENSORS) as part:
        part.write_bytes(to_bytes({k: v.contiguous() for k, v in sorted(renamed.items())}, {"format": "pt"}))


class _Training:
    """A captioner with a fresh LoRA, its pictures and the order of visits."""

    def __init__(
        self,
        section: TuneSection,
        network: PictureModel,
        pictures: Sequence[CaptionedPicture],
        folder: StageFolder,
        progress: Progress,
    ) -> None:
        self.section, self.network, self.folder, self.progress = section, network, folder, progress
        self.train = [p for p in pictures if p.split == "train"]
        self.validation = [p for p in pictures if p.split == "validation"]
        self.warnings = _warnings(network, self.train)
        self.parts: dict[str, nn.Module] = {COMPONENT: network.model}
        self.pattern, self.modules = targets_of(section, network)
        spec = adapters.LoraSpec(section.rank, section.alpha, {COMPONENT: self.pattern}, section.dropout)
        adapters.inject(self.parts, spec, section.seed)
        self.spec = spec
        self.visits = key_dropout(self.parts, section.dropout)
        self.length = tuning_steps(section, len(self.train))

    def run(self, inputs: dict[str, Any]) -> State:
        """Train to the end; the parameters then hold the result."""
        section, length = self.section, self.length
        loop = Loop(
            title="tune",
            folder=self.folder.path,
            epochs=length.epochs,
            total_steps=length.total_steps,
            checkpoint_every=section.checkpoint_every_steps,
            max_grad_norm=section.max_grad_norm,
            stop_after=section.stop_after,
            section="tune",
            precision="tune.precision",
        )
        training = section.as_training
        try:
            optimizer = optimizers.build_optimizer(training, adapters.parameters(self.parts))
        except RecipeError as error:
            raise _of_tune(error) from None

        def close_epoch(state: State) -> None:
            self.folder.pause(inputs)
            if state.held_out and best_epoch(state.held_out) == state.epoch:
                facts = {"epoch": str(state.epoch)}
                adapters.save(self.folder.path / BEST, adapters.weights_of(self.parts), self.spec, facts)
            self._show_samples(state)

        saving = layers_checkpointed([self.network.model]) if section.gradient_checkpointing else nullcontext()
        with saving, adapters.dropping(self.parts):
            state = fit(
                loop,
                adapters.parameters(self.parts),
                optimizer,
                self._steps_of_epoch,
                self._losses_of,
                lambda step: optimizers.set_learning_rate(
                    optimizer, optimizers.lr_factor(training, step, length.total_steps)
                ),
                lambda index: self.train[index].id,
                self.progress,
                close_epoch,
                held_out_loss=self._held_out if self.validation else None,
            )
        if state.held_out:
            adapters.set_weights(self.parts, adapters.read(self.folder.path / BEST)[0])
        return state

    def _steps_of_epoch(self, epoch: int) -> list[list[Batch]]:
        """Every picture once, in an order keyed by (seed, epoch)."""
        order = randomness.permutation(len(self.train), self.section.seed, "order", epoch)
        visits, size = [Visit(index, epoch) for index in order], self.section.batch_size
        batches: list[Batch] = [tuple(visits[i : i + size]) for i in range(0, len(visits), size)]
        together = self.section.gradient_accumulation
        return [batches[i : i + together] for i in range(0, len(batches), together)]

    def _losses_of(self, batch: Batch) -> Tensor:
        """The captions' losses (batch,); a picture's captions take turns from visit to visit."""
        of, seed = [self.train[visit.index] for visit in batch], self.section.seed
        self.visits.rows = [(seed, p.id, visit.number) for p, visit in zip(of, batch, strict=True)]
        texts = [
            p.references[
                (randomness.integer(len(p.references), seed, "caption", p.id) + visit.number) % len(p.references)
            ]
            for p, visit in zip(of, batch, strict=True)
        ]
        return self.network.losses(self.network.look([p.image for p in of]), texts)

    def _held_out(self) -> float:
        """What tells the best epoch, lower is better: the validation captions' loss, or minus their CIDEr."""
        with adapters.dropping(self.parts, on=False):
            if self.section.watch == "loss":
                return self._validation_loss()
            said = say_all(self.network, self.validation, Silent(), "validate")
            candidates, references = scored_texts(said, self.validation, self.network.section.prompt)
            return -score(candidates, references, ("cider",)).corpus["CIDEr"]

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The mean over pictures of the mean over their captions, each picture encoded by itself with each caption."""
        size, means = self.network.section.batch_size, list[float]()
        for picture in self.validation:
            losses: list[float] = []
            for start in range(0, len(picture.references), size):
                texts = picture.references[start : start + size]
                losses += self.network.losses(self.network.look([picture.image] * len(texts)), texts).tolist()
            means.append(sum(losses) / len(losses))
        return sum(means) / len(means)

    def _show_samples(self, state: State) -> None:
        """Say what the captioner now writes of a few pictures, and keep it."""
        shown = (self.validation or self.train)[: self.section.samples]
        if not shown:
            return
        with adapters.dropping(self.parts, on=False):
            said = say_all(self.network, shown, Silent(), "samples")
        path = self.folder.path / SAMPLES
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [row for row in rows if row["epoch"] < state.epoch]  # an epoch that is closed again after a kill
        rows += [{"epoch": state.epoch, **plain(s)} for s in said]
        write_records(path, rows)
        told = f", {_watched_value(self.section, state.held_out[-1])}" if state.held_out else ""
        self.progress.say(f"epoch {state.epoch}{told}: {said[0].id}: {said[0].text}")


def _watched_value(section: TuneSection, value: float) -> str:
    return f"validation CIDEr {-value:.3f}" if section.watch == "cider" else f"validation loss {value:.4f}"


def _watched(section: TuneSection, state: State, total_steps: int) -> dict[str, Any]:
    """What the manifest says of the validation: every epoch's value, the best epoch, and where training stopped."""
    if not state.held_out:
        return {}
    sign = -1 if section.watch == "cider" else 1
    told: dict[str, Any] = {
        "watched": section.watch,
        "validation": [sign * value for value in state.held_out],
        "best_epoch": best_epoch(state.held_out),
    }
    if stops(state.held_out, section.stop_after) and state.step < total_steps:
        told["stopped"] = f"no better for {section.stop_after} epochs (tune.stop_after), after epoch {state.epoch}"
    return told


def _warnings(network: PictureModel, pictures: Sequence[CaptionedPicture]) -> list[str]:
    """What of the captions cannot be learned, by name."""
    cut, unknown, small, count = [], [], [], 0
    for picture in pictures:
        for text in picture.references:
            words = network.words(text)
            count += 1
            cut += [picture.id] if words.cut else []
            unknown += [picture.id] if words.unknown else []
            if text != text.lower() and network.words(text.lower()).ids == words.ids:
                small.append(picture.id)
    most = network.section.max_new_tokens
    lines = []
    if cut:
        lines.append(
            f"{len(cut)} of {count} captions are longer than captioner.max_new_tokens = {most} and are cut, without an end: "
            f"{captions.some(cut)}"
        )
    if unknown:
        lines.append(
            f"{len(unknown)} captions have characters that the captioner's vocabulary lacks: {captions.some(unknown)}"
        )
    if small:
        lines.append(
            f"{len(small)} captions have capital letters; this captioner's tokenizer knows none, so it will write small ones"
        )
    return lines


def _of_tune(error: RecipeError) -> RecipeError:
    """The optimizer's refusal under the name of the section that it stands in here."""
    return RecipeError(str(error).replace("train.", "tune."))
