"""vlm: captions by a chat model that sees pictures (transformers' image-text-to-text), told what to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.captioners import Sources
from captune.captioners._chat import ChatModel
from captune.captioners._instructions import Instruction
from captune.captioners._model import PictureCaptioner, PictureModel
from captune.recipe import CaptionerSection
from captune.types import Example


class Vlm(PictureCaptioner):
    """A model that follows instructions (Qwen-VL, LLaVA, JoyCaption, SmolVLM, Gemma, Florence-2), loaded with the first
    picture."""

    def __init__(self, section: CaptionerSection, location: str, device: str) -> None:
        super().__init__(section, location, device, "vlm", ChatModel)
        self._instruction = Instruction(section)

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Vlm:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        return cls(section, ChatModel.locate(section), device)

    @property
    def settings(self) -> dict[str, object]:
        """As every captioner's, with the weights' bits."""
        return {**super().settings, "quantize": self._section.quantize}

    def sources(self, examples: Sequence[Example]) -> Sources:
        """The files that tags are read from."""
        return self._instruction.sources(examples)

    def _look(self, network: PictureModel, examples: Sequence[Example]) -> Any:
        assert isinstance(network, ChatModel)
        return network.look([e.image for e in examples], [self._instruction.of(e) for e in examples])

    def _precision(self) -> str:
        return self._section.precision

    def _quantize(self) -> str | None:
        return self._section.quantize
