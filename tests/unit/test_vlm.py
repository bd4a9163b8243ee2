"""Chat models as captioners, on tiny random models of real classes: batches, templates, tasks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune import captioners
from captune.captioners._chat import ChatModel
from captune.captioners._model import loading
from captune.captioners.vlm import Vlm
from captune.errors import ModelError, RecipeError
from captune.recipe import CaptionerSection
from captune.types import Example
from tests import tiny_chat
from tests.unit.test_captioners import make_examples


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_chat.write_llava(folder)
    return folder


def section(model: Path, **settings: object) -> CaptionerSection:
    values = {"name": "vlm", "model": str(model), "max_new_tokens": 10, **settings}
    return CaptionerSection.model_validate(values)


def say(words: CaptionerSection, examples: list[Example]) -> list[str]:
    captioners.check(words)
    said = captioners.load(words, "cpu", captioners.Words("jefpajot", "cat")).caption(examples)
    return [text for text in said if isinstance(text, str)]


@pytest.mark.parametrize("beams", [1, 3])
def test_caption_does_not_depend_on_the_batch_nor_on_longer_instructions_in_it(
    llava: Path, tmp_path: Path, beams: int
) -> None:
    examples = make_examples(tmp_path, 6)
    for example in examples:
        (tmp_path / f"{example.id}.tags").write_text("red, " * int(example.id) + "dress")
    words = section(llava, prompt="Describe the {class_word} {trigger_word}: {tags}", extension=".tags", beams=beams)
    together = say(words, examples)
    assert len(set(together)) > 3 and all(len(text) <= 10 for text in together)
    assert [text for example in examples for text in say(words, [example])] == together
    assert say(words, examples[::-1])[::-1] == together


def test_model_is_asked_as_its_processor_and_generate_ask_it(llava: Path, tmp_path: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    (example,) = make_examples(tmp_path, 1)
    (text,) = say(section(llava, prompt="Say what you see."), [example])
    model, processor = AutoModelForImageTextToText.from_pretrained(llava).eval(), AutoProcessor.from_pretrained(llava)
    parts = [{"type": "image", "image": Image.open(example.image)}, {"type": "text", "text": "Say what you see."}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        said = model.generate(**asked, max_new_tokens=10, do_sample=False)
    new = said[0, asked["input_ids"].shape[1] :]
    assert text == " ".join(processor.tokenizer.decode(new, skip_special_tokens=True).split()) and text


def test_picture_is_seen_and_the_instruction_read(llava: Path, tmp_path: Path) -> None:
    first, second = make_examples(tmp_path, 2)
    one, other = say(section(llava, prompt="Say it."), [first, second])
    assert one != other and say(section(llava, prompt="Be brief."), [first]) != [one]


def test_template_that_takes_text_alone_is_given_text(tmp_path: Path) -> None:
    tiny_chat.write_llava(tmp_path / "joy", tiny_chat.TEXT_TEMPLATE)
    loaded = ChatModel(section(tmp_path / "joy"), str(tmp_path / "joy"), loading("cpu", "fp32"))
    assert loaded.chat("Write a caption.") == "<s>USER: <image> Write a caption. ASSISTANT:"
    assert len(say(section(tmp_path / "joy"), make_examples(tmp_path, 2))) == 2


def test_model_that_cannot_be_instructed_is_refused(tmp_path: Path) -> None:
    tiny_chat.write_llava(tmp_path / "base", None)
    with pytest.raises(ModelError, match="has no chat template that takes a picture and an instruction"):
        say(section(tmp_path / "base"), make_examples(tmp_path, 1))


def test_settings_tell_models_and_instructions_apart(llava: Path, tmp_path: Path) -> None:
    first = Vlm.load(section(llava, prompt="Say it.")).settings
    assert first["prompt"] == "Say it." and first["max_new_tokens"] == 10
    assert CaptionerSection(name="vlm", model="a/b").max_new_tokens == 300
    tiny_chat.write_llava(tmp_path / "other", tiny_chat.TEXT_TEMPLATE)
    assert Vlm.load(section(tmp_path / "other")).settings["identity"] != first["identity"]


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"model": "/no/such/model"}, ModelError, "there is no model at '/no/such/model'"),
        ({"quantize": "4bit"}, RecipeError, 'captioner.quantize = "4bit" needs a CUDA GPU; this is cpu'),
        ({"image_size": 512}, RecipeError, "captioner.image_size = '512' is not read by 'vlm'"),
    ],
)
def test_what_cannot_be_done_is_told(
    llava: Path, tmp_path: Path, settings: dict[str, object], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        say(section(**{"model": llava, **settings}), make_examples(tmp_path, 1))  # type: ignore[arg-type]


def test_another_kind_of_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match="chat model in .* could not be loaded"):
        say(section(tmp_path), make_examples(tmp_path / "photos", 1))


def test_florence_is_given_tasks(tmp_path: Path) -> None:
    tiny_chat.write_florence(tmp_path / "florence")
    examples = make_examples(tmp_path / "photos", 4)
    together = say(section(tmp_path / "florence"), examples)
    assert len(set(together)) > 1 and [say(section(tmp_path / "florence"), [e])[0] for e in examples] == together
    assert together == say(section(tmp_path / "florence", prompt="<MORE_DETAILED_CAPTION>"), examples)
    assert together != say(section(tmp_path / "florence", prompt="<CAPTION>"), examples)
    with pytest.raises(
        RecipeError, match="captioner.prompt = 'Describe it.': Florence-2 knows tasks alone, <OCR>, <CAPTION>"
    ):
        say(section(tmp_path / "florence", prompt="Describe it."), examples)
