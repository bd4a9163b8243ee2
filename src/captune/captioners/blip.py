"""BLIP (Li et al. 2022, arXiv:2201.12086) as captioner: describes a picture, or finishes a prompt about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, images, weights
from captune.captioners import Sources
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:  # torch and transformers are imported only when the first picture is captioned
    from torch import Tensor


class Blip:
    """A BLIP model, loaded with the first picture. Decoding is greedy or by beams: equal pictures, equal captions."""

    def __init__(self, section: CaptionerSection, location: str, device: str) -> None:
        self._section = section
        self._location = location
        self._device = device
        self._settings: dict[str, object] | None = None
        self._loaded: _Loaded | None = None

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Blip:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        location = weights.locate(section.model, "blip")
        if section.model == weights.MINI and not Path(location).is_dir():
            raise ModelError(
                "the embedded BLIP is missing from this installation; install captune again, or name a folder or a hub "
                "name such as Salesforce/blip-image-captioning-base as captioner.model"
            )
        return cls(section, location, device)

    @property
    def settings(self) -> dict[str, object]:
        """Model and decode settings; a model on disk is told from another by its files, a hub model by its name."""
        if self._settings is None:
            self._settings = {
                "model": self._section.model,
                "identity": weights.identity(self._section.model, "blip"),
                "prompt": self._section.prompt,
                "max_new_tokens": self._section.max_new_tokens,
                "beams": self._section.beams,
                "precision": "fp32",
            }
        return self._settings

    def sources(self, examples: Sequence[Example]) -> Sources:
        """Nothing is read but the pictures."""
        return Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """Caption the prepared pictures as one batch; every caption begins with the prompt."""
        if not examples:
            return []
        if self._loaded is None:
            self._loaded = _Loaded(self._section, self._location, self._device)
        return self._loaded.caption([example.image for example in examples])


class _Loaded:
    """The model in memory, with its prompt as tokens."""

    def __init__(self, section: CaptionerSection, location: str, device: str) -> None:
        from captune.families._devices import choose_device

        self._section = section
        self.device = choose_device(device)
        self.processor, self.model = _read(location)
        self.model.to(self.device).eval()
        self.prompt_ids = self._prompt_ids()

    def _prompt_ids(self) -> Tensor:
        """The prompt as tokens (1, length): the start token [DEC], its words, [SEP].

        BLIP's generate writes [DEC] over the first token and drops the last, which it takes for [SEP]; so the prompt is
        tokenized alone, unpadded, and repeated for the batch.
        """
        import torch

        tokenizer, prompt = self.processor.tokenizer, captions.one_line(self._section.prompt)
        words = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in words:
            raise RecipeError(f"captioner.prompt = {prompt!r}: has characters that this BLIP's vocabulary lacks")
        config = self.model.config.text_config
        ids = [config.bos_token_id, *words, config.sep_token_id]
        room = config.max_position_embeddings - len(ids[:-1])
        if self._section.max_new_tokens > room:
            raise RecipeError(
                f"captioner.max_new_tokens = {self._section.max_new_tokens}: this BLIP has room for {room} tokens "
                f"after the prompt {prompt!r}"
            )
        return torch.tensor([ids], device=self.device)

    def caption(self, pictures: Sequence[Path]) -> list[str]:
        import torch

        opened = [images.open_picture(picture) for picture in pictures]
        pixel_values = self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]
        input_ids = self.prompt_ids.repeat(len(opened), 1)
        with torch.inference_mode():
            token_ids = self.model.generate(
                pixel_values=pixel_values.to(self.device, torch.float32),
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=self._section.max_new_tokens,
                num_beams=self._section.beams,
                do_sample=False,
            )
        # without the first token: [DEC] is no special token to the tokenizers of older checkpoints
        texts: list[str] = self.processor.tokenizer.batch_decode(token_ids[:, 1:], skip_special_tokens=True)
        return [captions.one_line(text) for text in texts]


def _read(location: str) -> tuple[Any, Any]:
    """The processor and the model (float32) of a folder or hub name; refuses weights that are not BLIP's."""
    import torch
    from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor

    local = Path(location).exists()
    try:
        config = AutoConfig.from_pretrained(location, local_files_only=local)
        if config.model_type != "blip":
            raise ModelError(f"the model in {location} is of type {config.model_type!r}, not blip; name a BLIP model")
        # backend: with torchvision installed it would resize differently, and captions would depend on that
        processor = BlipProcessor.from_pretrained(location, local_files_only=local, backend="pil")
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            location, local_files_only=local, dtype=torch.float32, output_loading_info=True
        )
    except ModelError:
        raise
    except Exception as error:  # whatever is wrong with a model's files or the way to them, it is told in one sentence
        raise weights.loading_failed(location, "BLIP captioner", error) from error
    model, report = loaded
    lacking = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise ModelError(
            f"the model in {location} has no weights for {len(lacking)} of BLIP's parameters "
            f"({captions.some(lacking, 3)}); name a BLIP model for captioning"
        )
    return processor, model
