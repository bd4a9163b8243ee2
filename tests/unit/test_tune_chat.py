"""Chat models learn captions as their templates write answers: token by token, to the end, and what cannot be is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from captune import captioners, checking, recipe
from captune.captioners._chat import ChatModel, _parts
from captune.captioners._model import IGNORED
from captune.captioners._targets import chosen
from captune.errors import ModelError, RecipeError
from captune.progress import Silent
from captune.recipe import CaptionerSection, TuneSection
from captune.runs import StageFolder
from captune.train.captioner import say_all, train_captioner
from captune.types import Example
from tests import tiny_chat
from tests.unit.test_tune_captioner import CAPTIONS, pairs

ASK = "Say what is seen."


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_chat.write_llava(folder)
    return folder


def section(model: Path, **settings: object) -> CaptionerSection:
    values = {"name": "vlm", "model": str(model), "prompt": ASK, "max_new_tokens": 40, **settings}
    return CaptionerSection.model_validate(values)


def loaded(model: Path, **settings: object) -> ChatModel:
    network = captioners.load_tunable(section(model, **settings), "cpu", "fp32")
    assert isinstance(network, ChatModel)
    return network


def test_answer_is_learned_behind_the_question_to_its_end(llava: Path, tmp_path: Path) -> None:
    network = loaded(llava)
    seen = network.look([p.image for p in pairs(tmp_path, 2)])
    lesson = network.lesson_about(seen, ["a cat", "a blue dog"])
    spelt = network.tokenizer.decode(lesson.input_ids[1]).replace("<image>" * 4, "<4 images>")
    assert spelt == "<s>USER: <4 images> Say what is seen. ASSISTANT: a blue dog</s>"
    for row, text in zip(lesson.labels, (" a cat</s>", " a blue dog</s>"), strict=True):
        assert network.tokenizer.decode(row[row != IGNORED]) == text
    assert lesson.attention_mask.sum(1).tolist() == [
        (seen["input_ids"].shape[1] + len(t)) for t in ("xa cat<", "xa blue dog<")
    ]


def test_loss_is_an_answers_own_whatever_else_is_in_the_batch(llava: Path, tmp_path: Path) -> None:
    network, shown = loaded(llava), pairs(tmp_path, 2)
    texts = ["a cat", "a large blue dog on the beach"]
    together = network.losses(network.look([p.image for p in shown]), texts)
    alone = [network.losses(network.look([p.image]), [t])[0] for p, t in zip(shown, texts, strict=True)]
    assert together.tolist() == pytest.approx([float(x) for x in alone], rel=1e-4)
    seen = network.look([shown[0].image])
    lesson = network.lesson_about(seen, ["a cat"])
    spread = torch.log_softmax(network.logits(seen, lesson), -1)[0]
    own = [place for place, label in enumerate(lesson.labels[0].tolist()) if label != IGNORED]
    by_hand = [-float(spread[place - 1, lesson.labels[0, place]]) for place in own]
    assert float(alone[0]) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_other_pixels_give_other_losses(llava: Path, tmp_path: Path) -> None:
    network, (first, second) = loaded(llava), pairs(tmp_path, 2)
    one, other = network.losses(network.look([first.image, second.image]), ["a cat", "a cat"]).tolist()
    assert abs(one - other) > 1e-3


def test_what_is_of_every_token_goes_on_over_the_answer(llava: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Processors of some models tell which tokens are the picture's; the answer's are text, and padding moves to the right."""
    network = loaded(llava)
    seen = network.look([p.image for p in pairs(tmp_path, 2)], [ASK, "Be brief."])
    seen["token_type_ids"] = (seen["input_ids"] == 4).long()
    given: dict[str, torch.Tensor] = {}

    class Heard(Exception):
        pass

    def hear(**inputs: torch.Tensor) -> None:
        given.update(inputs)
        raise Heard

    monkeypatch.setattr(network, "model", hear)
    with pytest.raises(Heard):
        network.logits(seen, network.lesson_about(seen, ["a cat", "a blue dog"]))
    assert torch.equal(given["token_type_ids"], (given["input_ids"] == 4).long())
    assert given["input_ids"].shape == given["attention_mask"].shape and given["attention_mask"][1, -1] == 0


def test_eight_pairs_are_learned_by_heart_and_answers_end(llava: Path, tmp_path: Path) -> None:
    shown = pairs(tmp_path / "pictures")
    values = {"path": "photos", "validation": 0, "test": 0, "captioner": section(llava), "device": "cpu", "samples": 0}
    more = {"targets": "all_linear", "learning_rate": 1e-2, "lr_scheduler": "constant", "dropout": 0, "steps": 90}
    tune = TuneSection.model_validate({**values, **more, "gradient_checkpointing": True})
    train_captioner(tune, "base", lambda: loaded(llava), shown, StageFolder(tmp_path / "train"), Silent())
    tuned = captioners.load_tuned(tune.captioner, tmp_path / "train", "cpu", "fp32")
    said = say_all(tuned, shown, Silent(), "")
    assert [s.text for s in said] == CAPTIONS and all(s.ended for s in said)
    told = tune.captioner.model_copy(update={"adapter": tmp_path / "train"})
    examples = [Example(p.id, p.image, p.image, 16, 16, 16, 16, 1, p.sha256) for p in shown]
    captioner = captioners.load(told, "cpu")
    assert captioner.caption(examples) == CAPTIONS and "adapter_identity" in captioner.settings


def test_presets_are_found_by_what_modules_are(llava: Path) -> None:
    network = loaded(llava)
    modules = [name for name, module in network.model.named_modules() if isinstance(module, torch.nn.Linear)]
    patterns = {preset: chosen(preset, network.presets, network.towers, modules) for preset in network.presets}
    hit = {preset: {name for name in modules if re.fullmatch(patterns[preset], name)} for preset in network.presets}
    assert set(hit) == {"text", "vision", "all_linear"}
    assert {name.split(".")[1] for name in hit["text"]} == {"language_model"} and len(hit["text"]) == 2 * 7
    assert {name.split(".")[1] for name in hit["vision"]} == {"vision_tower"} and len(hit["vision"]) == 2 * 6
    assert hit["all_linear"] == {*modules} - {"lm_head"}
    with pytest.raises(RecipeError, match="'q_proj' hits 2 modules of text, 2 modules of vision"):
        chosen("q_proj", network.presets, network.towers, modules)
    with pytest.raises(RecipeError, match="'cross_attention' hits no module .* presets: text, vision, all_linear"):
        chosen("cross_attention", network.presets, network.towers, modules)


def test_model_without_a_language_part_of_its_own_has_no_preset_text() -> None:
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.layers = (
                torch.nn.ModuleList([torch.nn.Linear(2, 2)]),
                torch.nn.ModuleList([torch.nn.Linear(2, 2)]),
            )

        def get_decoder(self) -> torch.nn.Module:
            return self

    towers, presets = _parts(Whole())
    assert set(presets) == {"vision", "all_linear"} and towers == {"vision": "visual."}


def test_template_without_answers_is_refused(tmp_path: Path) -> None:
    tiny_chat.write_llava(tmp_path / "joy", tiny_chat.TEXT_TEMPLATE)
    with pytest.raises(ModelError, match="does not go on from its own question with an answer"):
        loaded(tmp_path / "joy")


def test_florence_is_not_tuned(tmp_path: Path) -> None:
    tiny_chat.write_florence(tmp_path / "florence")
    with pytest.raises(RecipeError, match="Florence-2 knows tasks and has no chat template"):
        loaded(tmp_path / "florence", prompt="")


def test_instruction_is_the_same_for_every_picture(llava: Path) -> None:
    with pytest.raises(RecipeError, match=r"captioner.prompt names \{file_name\}: a tuning says the same"):
        captioners.check_tunable(section(llava, prompt="Describe {file_name}."))


def test_an_arms_words_are_filled_in(llava: Path) -> None:
    chosen = recipe.from_values(
        {
            "dataset": {"path": "photos", "trigger_word": "jefpajot", "class_word": "creature"},
            "train": {"steps": 1},
            "arm": [
                {
                    "name": "a",
                    "captioner": {"name": "vlm", "model": str(llava), "prompt": "Describe the {class_word}."},
                    "tune": {"path": "mine"},
                }
            ],
        }
    )
    assert checking.tuning_of(chosen, chosen.arm[0]).tune.captioner.prompt == "Describe the creature."
