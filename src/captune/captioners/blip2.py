"""BLIP-2 (Li et al. 2023, arXiv:2301.12597) as captioner: a Q-Former's image tokens, read by OPT or T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captune import captions, weights
from captune.captioners import _model
from captune.captioners._model import IGNORED, Lesson, Loading, PictureCaptioner, PictureModel, Words
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection

if TYPE_CHECKING:
    from torch import Tensor

_OPT = r"language_model\.model\.decoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]_proj|out_proj)|fc[12])"
_T5 = (
    r"language_model\.(?:encoder|decoder)\.block\.\d+\.layer\.\d+\."
    r"(?:(?:SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.w[io](?:_[01])?)"
)
_SEEING = r"(?:attention\.(?:query|key|value)|output\.dense)"
_CROSS = rf"qformer\.encoder\.layer\.\d+\.crossattention\.{_SEEING}"
_QFORMER = (
    rf"qformer\.encoder\.layer\.\d+\.(?:(?:attention|crossattention)\.{_SEEING}"
    r"|(?:intermediate|output)(?:_query)?\.dense)|language_projection"
)
_VISION = r"vision_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:qkv|projection)|mlp\.fc[12])"


class Blip2(PictureCaptioner):
    """A BLIP-2 model as captioner; a prompt is what the language model goes on from, and no part of the caption."""

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Blip2:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        return cls(section, Blip2Model.locate(section), device, "blip2", Blip2Model)

    def _precision(self) -> str:
        return "auto"


class Blip2Model(PictureModel):
    """BLIP-2 in memory. OPT learns a caption behind image tokens, start token and prompt, to a newline; T5 reads image
    tokens, prompt and </s> in its encoder and learns the caption to </s>."""

    towers = {
        "text": "language_model.",
        "q-former": "qformer.",
        "projection": "language_projection",
        "vision": "vision_",
    }

    @staticmethod
    def locate(section: CaptionerSection) -> str:
        """Where the section's model is."""
        if section.model == weights.MINI:
            raise ModelError(
                "there is no embedded BLIP-2: name a folder or a hub name such as Salesforce/blip2-opt-2.7b"
            )
        return weights.locate(section.model, "blip2")

    def __init__(self, section: CaptionerSection, location: str, loading: Loading) -> None:
        super().__init__(section, location, loading)
        text = self.model.config.text_config
        if text.model_type not in ("opt", "t5"):
            raise ModelError(f"the language model in {location} is {text.model_type!r}; BLIP-2 with opt or t5 is known")
        self.predicts_next = text.model_type == "opt"
        own = _OPT if self.predicts_next else _T5
        self.presets = {
            "text": own,
            "cross_attention": _CROSS,
            "vision": _VISION,
            "all_linear": f"{own}|{_QFORMER}|{_VISION}",
        }
        self.pad_id = text.pad_token_id
        self._prompt = captions.one_line(section.prompt)
        self._end = self._newline() if self.predicts_next else text.eos_token_id
        self.end_ids = frozenset({self._end, self.tokenizer.eos_token_id})
        start = [text.bos_token_id] if self.predicts_next else []
        close = [] if self.predicts_next else [text.eos_token_id]
        prompt = self._prompt_words(self._prompt) if self._prompt else []
        self.prefix_ids = [*self._image_tokens(), *start, *prompt, *close]
        most = getattr(text, "max_position_embeddings", None)  # T5 counts from any place
        if most is not None and len(self.prefix_ids) + section.max_new_tokens > most:
            raise RecipeError(
                f"captioner.max_new_tokens = {section.max_new_tokens}: this BLIP-2 has room for "
                f"{most - len(self.prefix_ids)} tokens after image tokens and prompt {self._prompt!r}"
            )

    def _newline(self) -> int:
        """The token that OPT's captions end with, as in BLIP-2's own training: its tokenizer adds no end by itself."""
        ids = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ModelError(f"the tokenizer in {self.location} has no token for a newline, which ends a caption")
        return int(ids[0])

    def _image_tokens(self) -> list[int]:
        """One image token for each query of the Q-Former: what has none of them is captioned blindly, without a word."""
        config = self.model.config
        token, rows = config.image_token_index, self.model.get_input_embeddings().num_embeddings
        if token is None or token >= rows:
            raise ModelError(
                f"the model in {self.location} has no image token (image_token_index = {token}, {rows} embeddings), so "
                "pictures would not be seen; save it again with a version of transformers from 4.46 on"
            )
        return [token] * config.num_query_tokens

    def check_image_tokens(self, input_ids: Tensor) -> None:
        """Raise a ModelError unless every row (batch, length) has an image token for each query.

        With fewer the network runs all the same, and sees a part of the picture or nothing of it.
        """
        queries = self.model.query_tokens.shape[1]
        for count in (input_ids == self.model.config.image_token_index).sum(1).tolist():
            if count != queries:
                raise ModelError(
                    f"{count} image tokens stand in the text, and this BLIP-2 has {queries} queries: the picture would "
                    f"{'not' if count == 0 else 'only in part'} be seen; num_query_tokens in {self.location} is wrong"
                )

    def words(self, text: str) -> Words:
        """The caption with its end behind it; it begins with a space where it goes on from a prompt."""
        rest = captions.without_start(captions.one_line(text), self._prompt)
        space = " " if self._prompt and self.predicts_next else ""
        return self._cut(self.tokenizer(space + rest, add_special_tokens=False)["input_ids"], self._end)

    def lesson(self, texts: list[str]) -> Lesson:  # type: ignore[override]
        if self.predicts_next:
            return super().lesson(texts)
        after = [self.words(text).ids for text in texts]
        read = self._padded([self.prefix_ids] * len(texts), len(self.prefix_ids), self.pad_id)
        labels = self._padded(after, max(map(len, after)), IGNORED)
        return Lesson(read, read.new_ones(read.shape), labels)

    def logits(self, pixel_values: Tensor, lesson: Lesson) -> Tensor:
        self.check_image_tokens(lesson.input_ids)
        labels = {} if self.predicts_next else {"labels": lesson.labels}  # from these T5 makes its decoder's input
        seen: Tensor = self.model(
            pixel_values=pixel_values, input_ids=lesson.input_ids, attention_mask=lesson.attention_mask, **labels
        ).logits
        return seen

    def _generate(self, seen: Any, **decode: Any) -> Tensor:
        """New tokens are counted, not all: the image tokens are no part of a caption's length."""
        import torch

        ids = torch.tensor([self.prefix_ids], device=self.device).repeat(len(seen), 1)
        self.check_image_tokens(ids)
        said: Tensor = self.model.generate(
            pixel_values=seen,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
            **decode,
        )
        return said[:, len(self.prefix_ids) :] if self.predicts_next else said[:, 1:]

    def _read(self) -> tuple[Any, Any]:
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        return _model.read(
            self.location, "BLIP-2", "blip-2", Blip2Processor, Blip2ForConditionalGeneration, self.loading
        )
