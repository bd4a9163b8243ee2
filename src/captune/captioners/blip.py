"""BLIP (Li et al. 2022, arXiv:2201.12086) as captioner: describes a picture, or finishes a prompt about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, weights
from captune.captioners import _model
from captune.captioners._model import Lesson, Loading, PictureCaptioner, PictureModel, Words
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = r"text_decoder\.bert\.encoder\.layer\.\d+\."
_ATTENTION = r"(?:self\.(?:query|key|value)|output\.dense)"
_TEXT = rf"{_LAYER}(?:(?:attention|crossattention)\.{_ATTENTION}|(?:intermediate|output)\.dense)"
_VISION = r"vision_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:qkv|projection)|mlp\.fc[12])"
# Where BERT's tokenizer cuts words and writes spaces: compounds (not a dash before a new phrase), and 's and the like.
_CUT = re.compile(r"(?<=\w) (-) (?!(?:an?|the|with|at|on)\b)(?=\w)|(?<=\w) (') (?=(?:[stdm]|re|ve|ll)\b)")


class Blip(PictureCaptioner):
    """A BLIP model as captioner; every caption begins with the prompt."""

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Blip:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        return cls(section, BlipModel.locate(section), device, "blip", BlipModel)


class BlipModel(PictureModel):
    """BLIP in memory. A caption is learned as it is generated: behind the start token [DEC] and the prompt, to [SEP]."""

    presets = {
        "text": _TEXT,
        "cross_attention": rf"{_LAYER}crossattention\.{_ATTENTION}",
        "vision": _VISION,
        "all_linear": f"{_TEXT}|{_VISION}",
    }
    towers = {"text": "text_decoder.", "vision": "vision_model."}

    @staticmethod
    def locate(section: CaptionerSection) -> str:
        """Where the section's model is."""
        location = weights.locate(section.model, "blip")
        if section.model == weights.MINI and not Path(location).is_dir():
            raise ModelError(
                "the embedded BLIP is missing from this installation; install captune again, or name a folder or a hub "
                "name such as Salesforce/blip-image-captioning-base as captioner.model"
            )
        return location

    def __init__(self, section: CaptionerSection, location: str, loading: Loading) -> None:
        super().__init__(section, location, loading)
        text = self.model.config.text_config
        self.pad_id, self._sep = text.pad_token_id, text.sep_token_id
        self.end_ids = frozenset({self._sep})
        self._prompt = captions.one_line(section.prompt)
        self.prefix_ids = [text.bos_token_id, *self._prompt_words(self._prompt)]
        room = text.max_position_embeddings - len(self.prefix_ids)
        if section.max_new_tokens > room:
            raise RecipeError(
                f"captioner.max_new_tokens = {section.max_new_tokens}: this BLIP has room for {room} tokens "
                f"after the prompt {self._prompt!r}"
            )

    def words(self, text: str) -> Words:
        """The caption after the prompt, which it may repeat, with [SEP] behind it."""
        rest = captions.without_start(captions.one_line(text), self._prompt)
        return self._cut(self.tokenizer(rest, add_special_tokens=False)["input_ids"], self._sep)

    def logits(self, pixel_values: Tensor, lesson: Lesson) -> Tensor:
        seen: Tensor = self.model(
            pixel_values=pixel_values, input_ids=lesson.input_ids, attention_mask=lesson.attention_mask
        ).logits
        return seen

    def _generate(self, seen: Any, **decode: Any) -> Tensor:
        """What BLIP says, the prompt's words included.

        Its generate writes [DEC] over the first token and drops the last, which it takes for [SEP]; so the prompt is
        given alone, unpadded, and repeated for the batch.
        """
        import torch

        ids = torch.tensor([[*self.prefix_ids, self._sep]], device=self.device).repeat(len(seen), 1)
        said: Tensor = self.model.generate(
            pixel_values=seen, input_ids=ids, attention_mask=torch.ones_like(ids), **decode
        )
        return said[:, 1:]  # [DEC] is no special token to the tokenizers of older checkpoints

    def _decode(self, said: Tensor) -> list[str]:
        """The texts with words in one piece: "t-shirt", which BERT's tokenizer writes "t - shirt", and "dog's"."""
        return [_CUT.sub(lambda found: found[1] or found[2], text) for text in super()._decode(said)]

    def _read(self) -> tuple[Any, Any]:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        return _model.read(self.location, "BLIP", "blip", BlipProcessor, BlipForConditionalGeneration, self.loading)
