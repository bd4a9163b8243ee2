"""Any chat model of transformers that sees pictures, as captioner: it is told what to write, in its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, images, weights
from captune.captioners import Sources
from captune.captioners._batches import Fitting
from captune.captioners._instructions import PLAIN, Instruction
from captune.captioners._model import quantized
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example

if TYPE_CHECKING:  # torch and transformers are imported only when the first picture is captioned
    import torch
    from PIL import Image
    from torch import Tensor

FLORENCE = "<MORE_DETAILED_CAPTION>"  # the task of Florence-2 that is nearest to a plain instruction
_MARKS = ("image_token", "boi_token", "image_placeholder")  # a processor's names for the place of a picture in a text


class Vlm:
    """A model that follows instructions (Qwen-VL, LLaVA, JoyCaption, SmolVLM, Gemma, Florence-2), loaded with the first
    picture. Decoding is greedy or by beams, without a penalty for repetition, which would count a batch's padding."""

    def __init__(self, section: CaptionerSection, location: str, device: str) -> None:
        self._section, self._location, self._device = section, location, device
        self._instruction = Instruction(section)
        self._settings: dict[str, object] | None = None
        self._loaded: _Loaded | None = None
        self._caption = Fitting(self._as_one_batch)

    @classmethod
    def load(cls, section: CaptionerSection, device: str = "auto") -> Vlm:
        """The captioner that the section names. Raises ModelError for a folder that is not there."""
        if section.model == weights.MINI:
            raise ModelError("no chat model is embedded: name a folder or a hub name as captioner.model")
        return cls(section, weights.locate(section.model, "vlm"), device)

    @property
    def settings(self) -> dict[str, object]:
        """Model, instruction and decode settings; a model on disk is told from another by its files."""
        if self._settings is None:
            section = self._section
            self._settings = {
                "model": section.model,
                "identity": weights.identity(section.model, "vlm"),
                "prompt": self._instruction.text,
                "max_new_tokens": section.max_new_tokens,
                "beams": section.beams,
                "precision": section.precision,
                "quantize": section.quantize,
            }
        return self._settings

    def sources(self, examples: Sequence[Example]) -> Sources:
        """The files that tags are read from."""
        return self._instruction.sources(examples)

    def caption(self, examples: Sequence[Example]) -> list[str]:
        """Caption the prepared pictures as one batch, or as several where memory does not hold it."""
        if examples and self._loaded is None:
            self._loaded = _Loaded(self._section, self._location, self._device)
        return self._caption(examples)

    def _as_one_batch(self, examples: Sequence[Example]) -> list[str]:
        assert self._loaded is not None
        told = [self._instruction.of(example) for example in examples]
        return self._loaded.caption([example.image for example in examples], told)


class _Loaded:
    """The model in memory."""

    def __init__(self, section: CaptionerSection, location: str, device: str) -> None:
        from captune.families._devices import choose_device

        self._section, self._location = section, location
        self.device = choose_device(device)
        self.dtype = _dtype(section.precision, self.device)
        if section.quantize and self.device.type != "cuda":
            raise RecipeError(f'captioner.quantize = "{section.quantize}" needs a CUDA GPU; this is {self.device.type}')
        self.processor, self.model = _read(location, section.quantize, self.device, self.dtype)
        if not section.quantize:
            self.model.to(self.device)
        self.model.eval()
        # what is padded on the right goes on from its padding
        self.processor.tokenizer.padding_side = "left"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    def caption(self, pictures: Sequence[Path], told: Sequence[str]) -> list[str]:
        import torch

        opened = [images.open_picture(picture) for picture in pictures]
        inputs = self._inputs(opened, told).to(self.device, self.dtype)
        with torch.inference_mode():
            said: Tensor = self.model.generate(
                **inputs,
                max_new_tokens=self._section.max_new_tokens,
                num_beams=self._section.beams,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        if not self.model.config.is_encoder_decoder:
            said = said[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [captions.one_line(text) for text in texts]

    def _inputs(self, opened: list[Image.Image], told: Sequence[str]) -> Any:
        """Pictures and instructions as the model reads them."""
        if hasattr(self.processor, "task_prompts_without_inputs"):
            tasks = [self._task(text) for text in told]
            return self.processor(text=tasks, images=opened, padding=True, return_tensors="pt")
        chats = [self._chat(text) for text in told]
        begin = self.processor.tokenizer.bos_token
        twice = {"add_special_tokens": False} if begin and chats[0].startswith(begin) else {}
        nested = [[picture] for picture in opened]
        return self.processor(text=chats, images=nested, padding=True, return_tensors="pt", **twice)

    def _task(self, text: str) -> str:
        """Florence-2 knows tasks, not instructions; those whose answer is text are taken."""
        tasks = [
            task
            for task, kind in self.processor.tasks_answer_post_processing_type.items()
            if kind == "pure_text" and task in self.processor.task_prompts_without_inputs
        ]
        task = FLORENCE if text == PLAIN else text
        if task not in tasks:
            raise RecipeError(f"captioner.prompt = {text!r}: Florence-2 knows tasks alone, {', '.join(tasks)}")
        return task

    def _chat(self, text: str) -> str:
        """The conversation up to where the model's answer begins, with one place for the picture.

        Templates differ in what they take: parts, or text alone, to which some add the picture's place by themselves. One
        that is given what it does not take may write Python's brackets into the conversation, or leave the picture out.
        """
        marks = [mark for name in _MARKS if (mark := getattr(self.processor, name, None))]
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        for content in (parts, text, *(f"{mark}\n{text}" for mark in marks[:1])):
            try:
                chat: str = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            except Exception:  # a template may raise whatever its author wrote; the next form may suit it
                continue
            if text in chat and "'type'" not in chat.replace(text, "") and any(chat.count(m) == 1 for m in marks):
                return chat
        raise ModelError(
            f"the model in {self._location} has no chat template that takes a picture and an instruction, so it cannot be "
            "told what to write; name an instruction-tuned model"
        )


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    import torch

    from captune.families._devices import DTYPES

    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[precision]


def _read(location: str, quantize: str | None, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The processor and the model of a folder or hub name; code that comes with a model is never run."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    local = Path(location).exists()
    try:
        # backend: with torchvision installed it would resize differently, and captions would depend on that
        processor = AutoProcessor.from_pretrained(
            location, local_files_only=local, trust_remote_code=False, backend="pil"
        )
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            location,
            local_files_only=local,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **quantized(quantize, device),
        )
    except Exception as error:  # whatever is wrong with a model's files or the way to them, it is told in one sentence
        if "torchvision" in str(error):
            raise ModelError(
                f"the processor of {location} needs torchvision, for videos: install the one that belongs to your torch "
                "(pip install torchvision)"
            ) from error
        raise weights.loading_failed(location, "chat model", error) from error
    model, report = loaded
    lacking = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise ModelError(
            f"the model in {location} has no weights for {len(lacking)} of its parameters ({captions.some(lacking, 3)})"
        )
    return processor, model
