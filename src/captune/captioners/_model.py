"""What captioners that are one network share: loading it with the first picture, decoding, and learning from captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, images, weights
from captune.captioners import Sources, Written
from captune.captioners._batches import Fitting
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:  # torch and transformers are imported only when the first picture is captioned
    import torch
    from torch import Tensor

IGNORED = -100  # the label of a token that is not learned


@dataclass(frozen=True)
class Loading:
    """How a network is brought into memory."""

    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None  # "8bit", "4bit"


@dataclass(frozen=True)
class Words:
    """A caption as the tokens that are learned, its end included; `cut` where it is longer than may be generated."""

    ids: list[int]
    cut: bool
    unknown: bool  # whether the vocabulary lacks a part of it


@dataclass(frozen=True)
class Lesson:
    """Captions as a network learns them, each (batch, length); labels are `IGNORED` where nothing is to be learned."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class PictureModel(ABC):
    """A network in memory that writes captions, and can learn to write others.

    It stays in evaluation mode, while it learns too: its own dropout would draw what no seed keys.
    """

    presets: Mapping[str, str]  # what a LoRA may change: name -> pattern of whole module names
    towers: Mapping[str, str]  # part of the network -> how its modules' names begin

    def __init__(self, section: CaptionerSection, location: str, loading: Loading) -> None:
        self.section, self.location, self.loading = section, location, loading
        self.device = loading.device
        self.processor, self.model = self._read()
        if loading.quantize is None:
            self.model.to(self.device)
        self.model.eval().requires_grad_(False)
        if section.adapter is not None:
            from captune.captioners._lora import put_in

            self.model = put_in(self.model, section.adapter, section.model, merged=loading.quantize is None)

    @staticmethod
    @abstractmethod
    def locate(section: CaptionerSection) -> str:
        """Where the section's model is; a ModelError where it cannot be."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def look(self, pictures: Sequence[Path]) -> Any:
        """The pictures as the network sees them, for `write` and `losses`: here (batch, 3, height, width) float32 on its
        device."""
        import torch

        opened = [images.open_picture(picture) for picture in pictures]
        seen: Tensor = self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]
        return seen.to(self.device, torch.float32)

    def write(self, seen: Any) -> list[Written]:
        """A caption of every picture by the section's decode settings, and whether it ended or ran into the limit."""
        import torch

        with torch.inference_mode():
            said = self._generate(
                seen,
                max_new_tokens=self.section.max_new_tokens,
                num_beams=self.section.beams,
                do_sample=False,
            )
        return [
            Written(captions.one_line(text), any(token in self.end_ids for token in row))
            for text, row in zip(self._decode(said), said.tolist(), strict=True)
        ]

    def lesson(self, texts: Sequence[str]) -> Lesson:
        """The captions behind what precedes them (prompt, image tokens), padded to the right; only they are learned."""
        return self._lesson([self.prefix_ids] * len(texts), texts)

    def _lesson(self, before: Sequence[list[int]], texts: Sequence[str]) -> Lesson:
        """The captions behind these tokens, row by row."""
        after = [self.words(text).ids for text in texts]
        rows = [told + ids for told, ids in zip(before, after, strict=True)]
        length = max(len(row) for row in rows)
        labels = [[IGNORED] * len(told) + ids for told, ids in zip(before, after, strict=True)]
        return Lesson(
            input_ids=self._padded(rows, length, self.pad_id),
            attention_mask=self._padded([[1] * len(row) for row in rows], length, 0),
            labels=self._padded(labels, length, IGNORED),
        )

    def losses(self, seen: Any, texts: Sequence[str]) -> Tensor:
        """Per caption the mean negative log-likelihood of its tokens, (batch,): padding and batch layout change nothing."""
        lesson = self.lesson_about(seen, texts)
        return token_losses(self.logits(seen, lesson), lesson.labels, shift=self.predicts_next)

    def lesson_about(self, seen: Any, texts: Sequence[str]) -> Lesson:
        """The lesson of captions of these pictures; here the same whatever is seen."""
        return self.lesson(texts)

    predicts_next = (
        True  # a position's logits are of the next token; not so where the decoder's input is shifted already
    )

    @abstractmethod
    def logits(self, seen: Any, lesson: Lesson) -> Tensor:
        """What the network expects at every position of the labels, (batch, length, vocabulary)."""

    @abstractmethod
    def words(self, text: str) -> Words:
        """A caption as the tokens to be learned."""

    @abstractmethod
    def _read(self) -> tuple[Any, Any]:
        """Processor and network of `location`; a ModelError tells what is wrong with them."""

    @abstractmethod
    def _generate(self, seen: Any, **decode: Any) -> Tensor:
        """Token ids of what is said, (batch, length), without what precedes the caption."""

    prefix_ids: list[int]
    end_ids: frozenset[int]
    pad_id: int

    def _decode(self, said: Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return texts

    def _cut(self, ids: list[int], end: int) -> Words:
        """The caption's tokens with the end behind them, cut to what may be generated: a cut caption has no end, so that
        none is learned in the middle of a sentence."""
        most = self.section.max_new_tokens
        return Words([*ids, end][:most], len(ids) >= most, self.tokenizer.unk_token_id in ids)

    def _padded(self, rows: Sequence[Sequence[int]], length: int, filling: int) -> Tensor:
        import torch

        return torch.tensor([[*row, *[filling] * (length - len(row))] for row in rows], device=self.device)

    def _prompt_words(self, text: str) -> list[int]:
        """The prompt's tokens; refuses what the vocabulary lacks."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.tokenizer.unk_token_id in ids:
            raise RecipeError(f"captioner.prompt = {text!r}: has characters that this model's vocabulary lacks")
        return ids


def token_losses(logits: Tensor, labels: Tensor, *, shift: bool) -> Tensor:
    """Mean negative log-likelihood of each row's labels, (batch,), from logits (batch, length, vocabulary)."""
    import torch.nn.functional as F

    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (labels != IGNORED).sum(1)


class PictureCaptioner:
    """A captioner whose network is loaded with the first picture. Decoding is greedy or by beams: equal pictures, equal
    captions."""

    def __init__(
        self, section: CaptionerSection, location: str, device: str, kind: str, load: Callable[..., PictureModel]
    ) -> None:
        self._section, self._location, self._device, self._kind = section, location, device, kind
        self._load = load
        self._settings: dict[str, object] | None = None
        self._loaded: PictureModel | None = None
        self._caption = Fitting(self._as_one_batch)

    @property
    def settings(self) -> dict[str, object]:
        """Model and decode settings; a model on disk is told from another by its files, a hub model by its name."""
        if self._settings is None:
            section = self._section
            self._settings = {
                "model": section.model,
                "identity": weights.identity(section.model, self._kind),
                "prompt": section.prompt,
                "max_new_tokens": section.max_new_tokens,
                "beams": section.beams,
                "precision": self._precision(),
            }
            if section.adapter is not None:
                from captune.captioners._lora import identity

                self._settings |= {"adapter": str(section.adapter), "adapter_identity": identity(section.adapter)}
        return self._settings

    def sources(self, examples: Sequence[Example]) -> Sources:
        """Nothing is read but the pictures."""
        return Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """Caption the prepared pictures as one batch, or as several where memory does not hold it."""
        if examples and self._loaded is None:
            how = loading(self._device, self._precision(), self._quantize(), "captioner")
            self._loaded = self._load(self._section, self._location, how)
        return self._caption(examples)

    def _as_one_batch(self, examples: Sequence[Example]) -> list[str]:
        assert self._loaded is not None
        return [written.text for written in self._loaded.write(self._look(self._loaded, examples))]

    def _look(self, network: PictureModel, examples: Sequence[Example]) -> Any:
        return network.look([example.image for example in examples])

    def _precision(self) -> str:
        return "fp32"

    def _quantize(self) -> str | None:
        return None


def loading(device: str, precision: str, quantize: str | None = None, section: str = "tune") -> Loading:
    """Device and number format by their names in a recipe's section; auto is bf16 on CUDA, else fp32."""

    from captune.families._devices import DTYPES, choose_device

    chosen = choose_device(device)
    if precision == "auto":
        precision = "bf16" if chosen.type == "cuda" else "fp32"
    if quantize and chosen.type != "cuda":
        raise RecipeError(f'{section}.quantize = "{quantize}" needs a CUDA GPU; this is {chosen.type}')
    return Loading(chosen, DTYPES[precision], quantize)


def read(location: str, what: str, kind: str, processor: Any, model: Any, how: Loading) -> tuple[Any, Any]:
    """Processor and model of a folder or hub name; refuses another kind of model, and weights that lack a part of it."""
    from transformers import AutoConfig

    local = Path(location).exists()
    try:
        config = AutoConfig.from_pretrained(location, local_files_only=local)
        if config.model_type != kind:
            raise ModelError(
                f"the model in {location} is of type {config.model_type!r}, not {kind}; name a {what} model"
            )
        # backend: with torchvision installed it would resize differently, and captions would depend on that
        pictures = processor.from_pretrained(location, local_files_only=local, backend="pil")
        loaded: Any = model.from_pretrained(
            location,
            local_files_only=local,
            dtype=how.dtype,
            output_loading_info=True,
            **quantized(how.quantize, how.device),
        )
    except ModelError:
        raise
    except Exception as error:  # whatever is wrong with a model's files or the way to them, it is told in one sentence
        raise weights.loading_failed(location, f"{what} captioner", error) from error
    return pictures, whole(loaded, location, f"{what}'s", f"; name a {what} model for captioning")


def whole(loaded: tuple[Any, Mapping[str, Any]], location: str, whose: str, way_out: str = "") -> Any:
    """The model of what from_pretrained made with its report; a ModelError where the file lacks some of its weights."""
    network, report = loaded
    lacking = sorted(set(report["missing_keys"]) & {name for name, _ in network.named_parameters()})
    if lacking:
        raise ModelError(
            f"the model in {location} has no weights for {len(lacking)} of {whose} parameters "
            f"({captions.some(lacking, 3)}){way_out}"
        )
    return network


def quantized(quantize: str | None, device: torch.device) -> dict[str, Any]:
    """What loads the weights in 8 or 4 bits: nothing, or bitsandbytes' settings."""
    if quantize is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": four, "device_map": {"": device}}
