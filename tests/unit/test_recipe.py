"""The recipe: what it reads, what it refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune import recipe
from captune.errors import RecipeError

FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
TUNINGS = [file for file in FILES if file.stem.startswith("tune_")]  # of a captioner alone
RECIPES = [file for file in FILES if file not in TUNINGS]


def values(**sections: Any) -> dict[str, Any]:
    """A small recipe that is valid, with sections changed or added."""
    arm = {"name": "human", "captioner": {"name": "sidecar"}}
    return {"dataset": {"path": "photos"}, "train": {"steps": 10}, "arm": [arm]} | sections


def problems(**sections: Any) -> list[str]:
    """The lines that tell what is wrong, without the heading."""
    with pytest.raises(RecipeError) as caught:
        recipe.from_values(values(**sections))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def reread(first: recipe.Recipe, folder: Path) -> recipe.Recipe:
    file = folder / "recipe.toml"
    file.write_text(recipe.as_toml(first), encoding="utf-8")
    return recipe.read(file)


def test_missing_values_take_their_defaults() -> None:
    found = recipe.from_values(values())
    assert (found.train.rank, found.train.learning_rate, found.base.model) == (8, 1e-4, "mini")
    assert (found.primary, found.training_seeds) == ("clip_i", [0])
    assert not found.regularization.wanted


def test_the_mini_family_is_judged_by_its_own_clip_and_real_models_by_vit_l_and_dino() -> None:
    mini, real = recipe.from_values(values()).judging, recipe.from_values(values(base={"model": "a/b"})).judging
    assert (mini.encoder, mini.dino_encoder) == ("mini", "")
    assert (real.encoder, real.dino_encoder) == ("openai/clip-vit-large-patch14", "facebook/dinov2-base")
    assert "dino" in real.measured and "dino" not in mini.measured


def test_an_arm_has_its_own_training_settings_and_no_unknown_ones() -> None:
    arm = {"name": "human", "captioner": {"name": "sidecar"}}
    found = recipe.from_values(
        values(arm=[arm | {"train": {"rank": 16, "epochs": 2}}], study={"training_seeds": [3, 4]})
    )
    section = found.train_of(found.arm[0], 4)
    assert (section.rank, section.epochs, section.steps, section.seed) == (16, 2, None, 4)
    assert problems(arm=[arm | {"train": {"rnak": 16}}]) == ["arm[0].train.rnak: unknown key; did you mean 'rank'?"]
    (line,) = problems(arm=[arm | {"train": {"seed": 1}}])
    assert "study.training_seeds" in line


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({}, "give one of captioner"),
        ({"captioner": {"name": "blip"}, "trigger_only": True}, "give one of captioner"),
        ({"shuffled": "humna"}, "there is no other arm 'humna' to take captions from (known: human)"),
        ({"shuffled": "two"}, "there is no other arm 'two'"),
        ({"trigger_only": True}, "trigger_only needs dataset.trigger_word"),
    ],
)
def test_a_derived_arm_needs_another_arm_to_be_made_of(extra: dict[str, Any], wanted: str) -> None:
    arm = {"name": "human", "captioner": {"name": "sidecar"}}
    lines = problems(arm=[arm, {"name": "two"} | extra])
    assert any(wanted in line for line in lines), lines


def test_what_a_study_declares_must_be_measured() -> None:
    (line,) = problems(study={"primary": "clip_x"})
    assert line.startswith("study.primary = 'clip_x' is not measured; known: clip_i, clip_t")
    (line,) = problems(study={"training_seeds": [1, 1]})
    assert "names a seed twice" in line
    (line,) = problems(study={"reproduction_seeds": []}, evaluate={"metrics": ["reproduction"]})
    assert "reproduction needs study.reproduction_seeds" in line


def test_written_out_recipe_reads_back_equal(tmp_path: Path) -> None:
    first = recipe.from_values(
        values(
            name="one",
            dataset={"path": 'a "quoted" \\ folder', "trigger_word": "jefpajot", "repeats": 3},
            train={"epochs": 2, "learning_rate": 1e-5, "betas": [0.9, 0.99], "targets": ["to_q", "to_k"], "flip": True},
            arm=[
                {"name": "blip", "captioner": {"name": "blip", "prompt": "a photo\tof"}},
                {"name": "human", "captioner": {"name": "sidecar", "folder": "words"}},
            ],
            sample={"prompts": ["a {trigger_word}", "naïve ☃"], "seeds": [0, 7]},
        )
    )
    assert reread(first, tmp_path) == first


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_being_written_out(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = recipe.from_values(values(sample={"negative_prompt": text}))
    assert reread(first, tmp_path_factory.mktemp("recipe")).sample.negative_prompt == text


def test_name_of_the_file_names_the_run(tmp_path: Path) -> None:
    file = tmp_path / "my first run.toml"
    file.write_text(recipe.as_toml(recipe.from_values(values())).replace('name = "run"\n', "", 1), encoding="utf-8")
    assert recipe.read(file).name == "my_first_run"


@pytest.mark.parametrize(
    ("setting", "section", "field", "expected"),
    [
        ("train.rank=16", "train", "rank", 16),
        ("train.learning_rate = 5e-4", "train", "learning_rate", 5e-4),
        ("train.flip=true", "train", "flip", True),
        ("dataset.path=my photos/duck", "dataset", "path", Path("my photos/duck")),
        ('dataset.trigger_word="sks"', "dataset", "trigger_word", "sks"),
        ("sample.seeds=[1, 2]", "sample", "seeds", [1, 2]),
    ],
)
def test_setting_changes_one_value(setting: str, section: str, field: str, expected: object) -> None:
    changed = recipe.from_values(values(), overrides=[setting])
    assert getattr(getattr(changed, section), field) == expected
    plain, rest = recipe.from_values(values()).model_dump(), changed.model_dump()
    assert plain[section].pop(field) != rest[section].pop(field)
    assert plain == rest


def test_setting_finds_an_arm_by_its_name_or_number() -> None:
    by_name = recipe.from_values(values(), overrides=["arm.human.captioner.extension=.caption"])
    by_number = recipe.from_values(values(), overrides=["arm.0.captioner.extension=.caption"])
    assert by_name == by_number
    assert by_name.arm[0].captioner.extension == ".caption"


def test_settings_leave_the_given_values_alone() -> None:
    given_values = values()
    recipe.from_values(given_values, overrides=["train.steps=99", "arm.human.name=other"])
    assert given_values == values()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.rank", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("arm.robot.name=x", "there is no 'robot' in the list"),
        ("train.steps.more=1", "'steps' is a value, not a section"),
        ("train.rnak=4", "train.rnak: unknown key; did you mean 'rank'?"),
    ],
)
def test_setting_that_cannot_be_is_told(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.from_values(values(), overrides=[setting])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"trian": {"rank": 4}}, "trian: unknown key; did you mean 'train'?"),
        ({"train": {"steps": 1, "rnak": 4}}, "train.rnak: unknown key; did you mean 'rank'?"),
        (
            {"arm": [{"name": "a", "captioner": {"name": "blip", "promt": "x"}}]},
            "arm[0].captioner.promt: unknown key; did you mean 'prompt'?",
        ),
        ({"dataset": {}}, "dataset.path: is missing"),
        ({"train": {"steps": 1, "rank": 0}}, "train.rank = 0: input should be greater than or equal to 1"),
        ({"train": {"steps": 1, "epochs": 1}}, "train: give epochs or steps, not both"),
        ({"train": {}}, "train: give epochs or steps"),
        ({"arm": [{"name": "base", "captioner": {"name": "blip"}}]}, "choose another"),
        ({"arm": [{"name": "a/b", "captioner": {"name": "blip"}}]}, "arm[0].name = 'a/b'"),
        ({"arm": [{"name": "a", "captioner": {"name": "blip"}}] * 2}, "two arms are named 'a'"),
        ({"sample": {"prompts": ["a {triger_word}"]}}, "unknown {triger_word} (known: {trigger_word}, {class_word})"),
        ({"regularization": {"count": 4}}, "count needs prompts, or dataset.class_word"),
        ({"regularization": {"count": 4, "path": "cats"}}, "not both"),
    ],
)
def test_mistake_is_told_with_its_place(sections: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(**sections)), problems(**sections)


def test_unknown_key_without_a_near_one_lists_the_known() -> None:
    (line,) = problems(prepare={"zzz": 1})
    assert line.startswith("prepare.zzz: unknown key (known: crop, focus, bucket_step,")


def test_all_mistakes_are_told_together() -> None:
    lines = problems(dataset={}, train={"rank": 0, "rnak": 1, "steps": 1}, trian={})
    assert sorted(line.split(":")[0].split(" =")[0] for line in lines) == [
        "dataset.path",
        "train.rank",
        "train.rnak",
        "trian",
    ]


def test_prompts_have_their_words_filled_in() -> None:
    found = recipe.from_values(
        values(
            dataset={"path": "p", "trigger_word": "jefpajot", "class_word": "toy"},
            sample={"prompts": ["a {trigger_word} {class_word} in the snow", "a {class_word}", "snow"]},
        )
    )
    assert found.prompts == ["a jefpajot toy in the snow", "a toy", "snow"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no recipe"), (b"[train\nrank = 1", "is not valid TOML"), (b"\xff\xfe", "cannot read the recipe")],
)
def test_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "recipe.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_that_comes_along_is_valid_and_says_what_it_is_for(file: Path) -> None:
    found = recipe.read(file, ["dataset.path=photos"])
    assert found.name == file.stem
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("Goal", "GPU", "Time", "Data"))
    asks = [found.dataset.trigger_word in prompt for prompt in found.prompts]
    assert any(asks) and not all(asks), "some prompts must ask for the subject, and some must not"


@pytest.mark.parametrize("file", TUNINGS, ids=lambda file: file.stem)
def test_tuning_that_comes_along_is_valid_and_says_what_it_is_for(file: Path) -> None:
    assert recipe.read_tuning(file).name == file.stem
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("Goal", "GPU", "Time", "Data"))


def test_recipes_come_along() -> None:
    assert {file.stem for file in RECIPES} >= {"photos_mini", "subject_sd15", "caption_style_loop_mini"}
    assert {file.stem for file in TUNINGS} == {"tune_blip", "tune_blip2_coco5k"}
