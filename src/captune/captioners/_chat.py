"""A chat model that sees pictures, in memory: asked by its own chat template, and taught to answer by the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune import captions, images, weights
from captune.captioners._instructions import PLAIN
from captune.captioners._model import Lesson, Loading, PictureModel, Words, quantized, whole
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FLORENCE = "<MORE_DETAILED_CAPTION>"  # the task of Florence-2 that is nearest to a plain instruction
_MARKS = ("image_token", "boi_token", "image_placeholder")  # a processor's names for the place of a picture in a text


class ChatModel(PictureModel):
    """A chat model in memory. It learns a caption as its template writes an answer, to the token that ends one.

    Decoding has no penalty for repetition, which would count a batch's padding.
    """

    @staticmethod
    def locate(section: CaptionerSection) -> str:
        """Where the section's model is."""
        if section.model == weights.MINI:
            raise ModelError("no chat model is embedded: name a folder or a hub name as captioner.model")
        return weights.locate(section.model, "vlm")

    def __init__(self, section: CaptionerSection, location: str, loading: Loading) -> None:
        super().__init__(section, location, loading)
        self.instruction = section.prompt or PLAIN
        # what is padded on the right goes on from its padding
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.pad_id = self.tokenizer.pad_token_id
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.end_ids = frozenset(end for end in (*ends, self.tokenizer.eos_token_id) if end is not None)
        self.towers, self.presets = _parts(self.model)

    def look(self, pictures: Sequence[Path], told: Sequence[str] | None = None) -> Any:
        """The pictures, each with what the model is told of it, as its processor makes inputs of them."""
        opened = [images.open_picture(picture) for picture in pictures]
        made = self._inputs(opened, told if told is not None else [self.instruction] * len(opened))
        return made.to(self.device, self.loading.dtype)

    def words(self, text: str) -> Words:
        """The caption as the template writes an answer, with the token that ends it."""
        ids = self._answer(captions.one_line(text))
        stop = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        if stop is None:
            return self._cut(ids, self.tokenizer.eos_token_id)
        return self._cut(ids[:stop], ids[stop])

    def lesson_about(self, seen: Any, texts: Sequence[str]) -> Lesson:
        """The answers behind what was asked; a question is as long as its picture has tokens."""
        kept = seen["attention_mask"].bool()
        return self._lesson([row[here].tolist() for row, here in zip(seen["input_ids"], kept, strict=True)], texts)

    def logits(self, seen: Any, lesson: Lesson) -> Tensor:
        asked = seen["input_ids"].shape
        more = {name: value for name, value in seen.items() if name not in ("input_ids", "attention_mask")}
        for name, value in more.items():
            if value.shape == asked:  # of every token, such as its kind: an answer is text, which is 0
                more[name] = self._along(value, seen["attention_mask"], lesson.input_ids)
        found: Tensor = self.model(
            **more, input_ids=lesson.input_ids, attention_mask=lesson.attention_mask, use_cache=False
        ).logits
        return found

    def _along(self, value: Tensor, kept: Tensor, ids: Tensor) -> Tensor:
        rows = [row[here.bool()].tolist() for row, here in zip(value, kept, strict=True)]
        return self._padded(rows, ids.shape[1], 0)

    def _generate(self, seen: Any, **decode: Any) -> Tensor:
        said: Tensor = self.model.generate(
            **seen,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            pad_token_id=self.pad_id,
            **decode,
        )
        return said[:, 1 if self.model.config.is_encoder_decoder else seen["input_ids"].shape[1] :]

    def _inputs(self, opened: list[Image.Image], told: Sequence[str]) -> Any:
        """Pictures and instructions as the model reads them."""
        if hasattr(self.processor, "task_prompts_without_inputs"):
            tasks = [self._task(text) for text in told]
            return self.processor(text=tasks, images=opened, padding=True, return_tensors="pt")
        chats = [self.chat(text) for text in told]
        nested = [[picture] for picture in opened]
        return self.processor(text=chats, images=nested, padding=True, return_tensors="pt", **self._once(chats[0]))

    def _once(self, chat: str) -> dict[str, bool]:
        """What keeps a start token from being put before one that the template has written."""
        begin = self.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and chat.startswith(begin) else {}

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

    def chat(self, text: str, answer: str | None = None) -> str:
        """The conversation up to where the model's answer begins, or with it, with one place for the picture.

        Templates differ in what they take: parts, or text alone, to which some add the picture's place by themselves. One
        that is given what it does not take may write Python's brackets into the conversation, or leave the picture out.
        """
        marks = [mark for name in _MARKS if (mark := getattr(self.processor, name, None))]
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        for content in (parts, text, *(f"{mark}\n{text}" for mark in marks[:1])):
            turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
            if answer is not None:
                said = [{"type": "text", "text": answer}] if content is parts else answer
                turns.append({"role": "assistant", "content": said})
            try:
                written: str = self.processor.apply_chat_template(
                    turns, add_generation_prompt=answer is None, tokenize=False
                )
            except Exception:  # a template may raise whatever its author wrote; the next form may suit it
                continue
            rest = written.replace(text, "").replace(answer or text, "")
            if text in written and "'type'" not in rest and any(written.count(m) == 1 for m in marks):
                return written
        raise ModelError(
            f"the model in {self.location} has no chat template that takes a picture and an instruction, so it cannot be "
            "told what to write; name an instruction-tuned model"
        )

    def _answer(self, text: str) -> list[int]:
        """The tokens of an answer, as they follow on the question in the template's own writing."""
        if hasattr(self.processor, "task_prompts_without_inputs"):
            raise RecipeError("Florence-2 knows tasks and has no chat template, so captune cannot tune it")
        asked = self.chat(self.instruction)
        try:
            answered = self.chat(self.instruction, text)
        except ModelError:
            answered = ""
        if not answered.startswith(asked):
            raise ModelError(
                f"the chat template in {self.location} does not go on from its own question with an answer, so what an "
                "answer is cannot be told; such a model cannot be tuned"
            )
        before, all_of_it = (
            self.tokenizer(chat, **self._once(asked))["input_ids"] for chat in (asked, answered.rstrip())
        )
        if all_of_it[: len(before)] == before:
            ids: list[int] = all_of_it[len(before) :]
        else:  # the question's last token and the answer's first would be one
            ids = self.tokenizer(answered[len(asked) :].rstrip(), add_special_tokens=False)["input_ids"]
        return ids

    def _read(self) -> tuple[Any, Any]:
        """Processor and model of a folder or hub name; code that comes with a model is never run."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        location, local = self.location, Path(self.location).exists()
        try:
            # backend: with torchvision installed it would resize differently, and captions would depend on that
            processor = AutoProcessor.from_pretrained(
                location, local_files_only=local, trust_remote_code=False, backend="pil"
            )
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                location,
                local_files_only=local,
                trust_remote_code=False,
                dtype=self.loading.dtype,
                output_loading_info=True,
                **quantized(self.loading.quantize, self.loading.device),
            )
        except Exception as error:  # whatever is wrong with a model's files or the way to them is told in one sentence
            if "torchvision" in str(error):
                raise ModelError(
                    f"the processor of {location} needs torchvision, for videos: install the one that belongs to your "
                    "torch (pip install torchvision)"
                ) from error
            raise weights.loading_failed(location, "chat model", error) from error
        return processor, whole(loaded, location, "its")


def _parts(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The towers of a chat model (how their modules' names begin), and its presets, whatever its architecture calls them."""
    from torch import nn

    language = model.get_decoder()  # the model itself where its architecture has no such part: then there is no `text`
    text = [f"{name}." for name, module in model.named_modules() if module is language and name]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    begins = dict.fromkeys(found[1] for name in linear if (found := re.match(r"((?:.*?\.)?vis(?:ion|ual)\w*\.)", name)))
    towers = {"vision" if i == 0 else f"vision {i + 1}": start for i, start in enumerate(begins)}
    presets = {"vision": _all_below(list(begins), linear)} if begins else {}
    if text:
        towers = {"text": text[0], **towers}
        presets = {"text": _all_below(text, linear), **presets}
    presets["all_linear"] = _all_below([name for name in linear if not name.endswith("lm_head")], linear)
    return towers, presets


def _all_below(begins: Sequence[str], linear: Sequence[str]) -> str:
    """A pattern of the linear layers whose names begin so: layers that differ in their numbers alone as one."""
    kinds = dict.fromkeys(
        re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in linear if name.startswith(tuple(begins))
    )
    return "|".join(kinds)
