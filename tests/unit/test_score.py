"""Facts about the stage that scores samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captune import metrics
from captune.errors import DataError, ModelError
from captune.evaluate import score
from captune.metrics import Item, _oracle
from captune.mini import subjects, world
from captune.progress import Silent
from captune.recipe import DatasetSection, EvaluateSection
from captune.runs import StageFolder, sha256_of
from captune.types import Example, Sample, Score
from tests.perfect_oracle import PerfectOracle
from tests.tiny_clip import write_tiny_clip

DATASET = DatasetSection(path=Path("photos"), trigger_word="jefpajot", class_word="creature")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> PerfectOracle:
    oracle = PerfectOracle()
    readings = _oracle.Readings(oracle)  # type: ignore[arg-type]
    monkeypatch.setattr(_oracle, "load", lambda: readings)
    return oracle


# The prompt without its trigger word


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a jefpajot on the beach", "a creature on the beach"),
        ("jefpajot, on the beach", "creature, on the beach"),
        ("A Jefpajot at night", "A creature at night"),
        ("a jefpajot creature in a jefpajot meadow", "a creature in a creature meadow"),
        ("the jefpajot's house", "the creature's house"),
        ("a jefpajotish cat", "a jefpajotish cat"),
        ("a red cat", "a red cat"),
    ],
)
def test_the_class_word_takes_the_trigger_words_place(prompt: str, expected: str) -> None:
    assert score.without_trigger_word(prompt, "jefpajot", "creature") == expected


def test_the_article_fits_the_class_word() -> None:
    assert score.without_trigger_word("a sks in snow", "sks", "animal") == "an animal in snow"
    assert score.without_trigger_word("An ohwx in snow", "ohwx", "dog") == "A dog in snow"


def test_without_a_class_word_the_trigger_word_goes_with_its_article() -> None:
    assert score.without_trigger_word("a jefpajot, on the beach", "jefpajot", "") == "on the beach"
    assert score.without_trigger_word("jefpajot", "jefpajot", "") == ""


def test_without_a_trigger_word_every_prompt_asks_for_what_was_taught() -> None:
    assert score.asks_for_subject("a cat", "")
    assert score.without_trigger_word("a cat", "", "creature") == "a cat"
    assert score.asks_for_subject("the Jefpajot's hat", "jefpajot")
    assert not score.asks_for_subject("jefpajots", "jefpajot")


# What a metric gets to see


class Watching:
    """A metric that keeps the items it was given, and judges all of them as 1."""

    name, title, meaning, higher_is_better, encoder = "watching", "Watching", "", True, "none"

    def __init__(self, judges: str, ceiling: bool = False) -> None:
        self.judges, self.ceiling, self.warnings = judges, ceiling, list[str]()
        self.items: list[Item] = []

    def score(self, items: Sequence[Item]) -> list[float | None]:
        self.items += items
        return [1.0] * len(items)


Watch = Callable[..., tuple[list[Item], list[Score]]]


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Scores a small study with a metric that judges such prompts; what it saw, and the scores."""
    samples, examples = study(tmp_path)

    def watched(judges: str, ceiling: bool = False) -> tuple[list[Item], list[Score]]:
        metric = Watching(judges, ceiling)
        monkeypatch.setattr(metrics, "load", lambda names, context: {"watching": metric})
        section, folder = EvaluateSection(metrics=["watching"]), StageFolder(tmp_path / f"{judges}-{ceiling}")
        return metric.items, score.score_samples(section, DATASET, samples, examples, folder, Silent())

    return watched


def study(folder: Path) -> tuple[list[Sample], list[Example]]:
    """Two arms, two training seeds, two sampling seeds; one prompt with and one without the trigger word; training
    pictures asked back by each arm's captions; and pictures of one training's progress. Files hold their own names."""

    def file(name: str) -> Path:
        path = folder / f"{name}.png"
        path.write_text(name)
        return path

    examples = [Example(e, file(e), file(e), 8, 8, 8, 8, 1, e) for e in ("e0", "e1", "e2")]
    samples = []
    for arm, training_seed in (("base", 0), ("blip", 0), ("blip", 1), ("human", 0), ("human", 1)):
        who = f"{arm}{training_seed}"
        for index, prompt in enumerate(("a jefpajot in the snow", "a red cat")):
            for seed in (3, 4):
                path = file(f"{who}-{index}-{seed}")
                samples.append(Sample(arm, prompt, index, seed, path, training_seed))
        for index, example in enumerate(examples):
            for words in ("blip", "human") if arm == "base" else (arm,):
                path = file(f"{who}-{example.id}-{words}")
                of = f"the {words} caption of {example.id}"
                samples.append(Sample(arm, of, index, 3, path, training_seed, of=example.id))
    for epoch in (1, 2):
        path = file(f"human1-progress-{epoch}")
        samples.append(Sample("human", "a jefpajot in the snow", 0, 3, path, 1, epoch))
    return samples, examples


def seen(items: Sequence[Item], image: str) -> Item:
    (item,) = (item for item in items if item.image.stem == image)
    return item


def test_the_bases_picture_has_the_same_prompt_and_seed(watch: Watch) -> None:
    items, _ = watch("all")
    for name, base in (("blip1-0-3", "base0-0-3"), ("human0-1-4", "base0-1-4")):
        found = seen(items, name).base_image
        assert found is not None and found.stem == base
    assert seen(items, "base0-0-3").base_image is None


def test_siblings_differ_in_their_sampling_seed_alone(watch: Watch) -> None:
    items, _ = watch("all")
    assert {item.image.stem: [path.stem for path in item.siblings] for item in items if item.siblings} == {
        f"{who}-{index}-{seed}": [f"{who}-{index}-{7 - seed}"]
        for who in ("base0", "blip0", "blip1", "human0", "human1")
        for index in (0, 1)
        for seed in (3, 4)
    }


def test_training_pictures_asked_back_are_judged_by_metrics_for_them_alone(watch: Watch) -> None:
    items, scores = watch("reproduction")
    assert len(items) == 6 + 4 * 3 and all(item.own_image is not None for item in items)
    item = seen(items, "human1-e2-human")
    assert item.own_image is not None and item.own_image.stem == "e2"
    assert item.base_image is not None and item.base_image.stem == "base0-e2-human"  # not blip's caption
    assert seen(items, "base0-e2-human").base_image is None
    about = {(s.item, s.prompt_index, s.training_seed, s.epoch) for s in scores if s.arm == "human"}
    assert about == {(f"e{i}-3", i, seed, 0) for i in range(3) for seed in (0, 1)}
    assert not any(item.own_image for judges in ("all", "subject", "ordinary") for item in watch(judges)[0])


def test_pictures_of_the_progress_are_judged_by_what_they_show(watch: Watch) -> None:
    items, scores = watch("subject")
    item = seen(items, "human1-progress-2")
    assert (item.base_image, item.siblings, item.own_image) == (None, (), None)
    assert [path.stem for path in item.references] == ["e0", "e1", "e2"]
    assert [(s.item, s.training_seed, s.epoch) for s in scores if s.epoch] == [("000-3", 1, 1), ("000-3", 1, 2)]
    assert len(scores) == 10 + 2


def test_metrics_judge_the_prompts_they_are_made_for(watch: Watch) -> None:
    assert {item.prompt for item in watch("ordinary")[0]} == {"a red cat"}
    assert {item.prompt for item in watch("subject")[0]} == {"a jefpajot in the snow"}
    assert len(watch("all")[0]) == 20 + 2


def test_only_a_metric_with_a_ceiling_judges_the_training_pictures(watch: Watch) -> None:
    assert not any(s.arm == "real" for s in watch("subject")[1])
    items, scores = watch("subject", True)
    assert [(s.item, s.prompt_index) for s in scores if s.arm == "real"] == [("e0", 0), ("e1", 1), ("e2", 2)]
    assert [path.stem for path in seen(items, "e1").references] == ["e0", "e2"]


def test_a_picture_asked_back_that_is_not_a_training_picture_is_named(tmp_path: Path) -> None:
    samples, examples = study(tmp_path)
    with pytest.raises(DataError, match=r"e2-blip\.png asks 'e2' back, which is not among the training pictures"):
        score.score_samples(
            EvaluateSection(), DATASET, samples, examples[:2], StageFolder(tmp_path / "evaluate"), Silent()
        )


def test_a_metric_that_judged_nothing_says_why(perfect: PerfectOracle, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    asking = [sample for sample in samples if "jefpajot" in sample.prompt]
    section, folder = EvaluateSection(metrics=["oracle_leak", "oracle_subject"]), StageFolder(tmp_path / "evaluate")
    score.score_samples(section, DATASET, asking, examples, folder, Silent())
    facts = score.read_facts(folder)
    assert facts["oracle_leak"].warnings == ("oracle_leak judged nothing: every prompt asks for the subject",)
    assert facts["oracle_subject"].warnings == ()


def test_every_metric_by_clip_on_a_small_study(encoder: str, tmp_path: Path) -> None:
    samples, examples = study(tmp_path)
    rng = random.Random(1)
    for path in [*(sample.path for sample in samples), *(example.image for example in examples)]:
        world.draw(world.random_scene(rng)).save(path)
    names = ["clip_i", "clip_i_best", "memorization", "diversity", "leak_change", "leak_subject", "reproduction"]
    section, folder = EvaluateSection(metrics=names, encoder=encoder), StageFolder(tmp_path / "evaluate")
    scores = score.score_samples(section, DATASET, samples, examples, folder, Silent(), "cpu")
    judged = {name: {s.arm for s in scores if s.metric == name} for name in names}
    arms = {"blip", "human"}
    assert judged == {
        **dict.fromkeys(["clip_i", "clip_i_best"], arms | {"base", "real"}),
        **dict.fromkeys(["memorization", "diversity"], arms | {"base"}),
        **dict.fromkeys(["leak_change", "leak_subject", "reproduction"], arms),
    }
    assert {s.metric for s in scores if s.epoch} == {"clip_i", "clip_i_best", "memorization"}
    assert all(facts.warnings == () for facts in score.read_facts(folder).values())


# The stage


def run_of(oracle: PerfectOracle, folder: Path) -> tuple[list[Sample], list[Example]]:
    """Two prompts, two seeds: the base draws ordinary things, the arm human draws the subject; and three examples."""
    rng, samples, examples = random.Random(8), [], []
    for arm in ("base", "human"):
        for index, prompt in enumerate(("a jefpajot in the snow", "a red cat at night")):
            for seed in (0, 1):
                subject = arm == "human" and index == 0
                scene = subjects.subject_scene("jefpajot", rng) if subject else world.random_scene(rng, two_share=0)
                path = oracle.draw(scene, folder / f"{arm}-{index}-{seed}.png")
                samples.append(Sample(arm, prompt, index, seed, path))
    samples.append(Sample("human", "a jefpajot in the snow", 0, 0, samples[0].path, epoch=5))
    for index, scene in enumerate(subjects.training_scenes("jefpajot", 3)):
        path = oracle.draw(scene, folder / f"example-{index}.png")
        examples.append(Example(f"e{index}", path, path, 64, 64, 64, 64, 1, sha256_of(path)))
    return samples, examples


def test_every_metric_judges_the_prompts_it_is_made_for(perfect: PerfectOracle, encoder: str, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_leak", "clip_i", "clip_t"], encoder=encoder)
    folder = StageFolder(tmp_path / "evaluate")
    scores = score.score_samples(section, DATASET, samples, examples, folder, Silent(), "cpu")

    def of(metric: str, arm: str) -> list[str]:
        return [s.item for s in scores if s.metric == metric and s.arm == arm]

    assert of("oracle_subject", "human")[:2] == of("clip_i", "base") == ["000-0", "000-1"]
    assert of("oracle_leak", "human") == ["001-0", "001-1"]
    assert of("clip_t", "human") == ["000-0", "000-1", "001-0", "001-1", "000-0"]  # the last at epoch 5
    assert of("clip_i", "real") == of("oracle_subject", "real") == ["e0", "e1", "e2"]
    assert of("clip_t", "real") == of("oracle_leak", "real") == []
    by_arm = {s.arm: s.value for s in scores if s.metric == "oracle_subject" and not s.epoch}
    assert by_arm == {"base": 0, "human": 1, "real": 1}
    assert {s.encoder for s in scores if s.metric == "clip_t"} == {encoder}


def test_scores_are_kept_and_read_back(perfect: PerfectOracle, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_background"])
    folder = StageFolder(tmp_path / "evaluate")
    first = score.score_samples(section, DATASET, samples, examples, folder, Silent())
    perfect.scenes.clear()  # nothing may be judged again
    again = section.model_copy(update={"resamples": 500, "confidence": 0.9})
    assert score.score_samples(again, DATASET, samples, examples, folder, Silent()) == first
    assert score.read_facts(folder)["oracle_subject"].title == "Subject drawn"
    assert not (folder.path / score.PART).exists()


def test_a_stopped_evaluation_goes_on_with_what_is_missing(
    perfect: PerfectOracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captune.metrics.oracle_background import OracleBackground

    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_background"])
    whole = score.score_samples(section, DATASET, samples, examples, StageFolder(tmp_path / "whole"), Silent())

    def stopped(self: OracleBackground, items: Sequence[Item]) -> list[float | None]:
        raise KeyboardInterrupt

    folder = StageFolder(tmp_path / "evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(OracleBackground, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            score.score_samples(section, DATASET, samples, examples, folder, Silent())
    monkeypatch.setattr("captune.metrics.oracle_subject.OracleSubject.score", stopped)
    assert score.score_samples(section, DATASET, samples, examples, folder, Silent()) == whole
    assert (folder.path / score.SCORES).read_bytes() == (tmp_path / "whole" / score.SCORES).read_bytes()


def test_a_changed_sample_is_judged_again(perfect: PerfectOracle, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section, folder = EvaluateSection(metrics=["oracle_subject"]), StageFolder(tmp_path / "evaluate")
    score.score_samples(section, DATASET, samples, examples, folder, Silent())
    perfect.draw(subjects.subject_scene("jefpajot", random.Random(99)), samples[0].path)
    scores = score.score_samples(section, DATASET, samples, examples, folder, Silent())
    assert [s.value for s in scores if s.arm == "base"] == [1, 0]


def test_a_score_that_is_not_a_number_is_an_error(
    perfect: PerfectOracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, examples = run_of(perfect, tmp_path)
    broken: Any = lambda self, items: [float("nan")] * len(items)  # noqa: E731
    monkeypatch.setattr("captune.metrics.oracle_subject.OracleSubject.score", broken)
    with pytest.raises(ModelError, match="judged .* as nan"):
        score.score_samples(
            EvaluateSection(metrics=["oracle_subject"]),
            DATASET,
            samples,
            examples,
            StageFolder(tmp_path / "e"),
            Silent(),
        )


def test_a_missing_sample_is_named(tmp_path: Path) -> None:
    gone = Sample("human", "a jefpajot", 0, 0, tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read .*run the sample stage again"):
        score.score_samples(EvaluateSection(), DATASET, [gone], [], StageFolder(tmp_path / "e"), Silent())


def test_other_weights_of_the_encoder_judge_again(encoder: str, tmp_path: Path) -> None:
    clip, pictures = tmp_path / "clip", tmp_path / "pictures"
    clip.mkdir()
    pictures.mkdir()
    for path in Path(encoder).iterdir():
        (clip / path.name).write_bytes(path.read_bytes())
    samples, examples = study(pictures)
    section = EvaluateSection(metrics=[], encoder=str(clip))
    before = score._inputs(section, DATASET, samples, examples)
    assert score._inputs(section, DATASET, samples, examples) == before
    (clip / "model.safetensors").write_bytes(b"other")
    assert score._inputs(section, DATASET, samples, examples) != before


def test_no_metrics_are_an_evaluation_too(tmp_path: Path) -> None:
    samples, examples = study(tmp_path)
    folder = StageFolder(tmp_path / "evaluate")
    for _ in range(2):  # the second time finds it done
        assert score.score_samples(EvaluateSection(metrics=[]), DATASET, samples, examples, folder, Silent()) == []
    assert (folder.path / score.SCORES).read_text() == ""
    assert score.read_facts(folder) == {}


def test_scores_depend_on_everything_that_tells_samples_apart(tmp_path: Path) -> None:
    samples, examples = study(tmp_path)
    told = [score._inputs(EvaluateSection(), DATASET, samples, examples)]
    changes: list[dict[str, Any]] = [{"of": "e1"}, {"epoch": 3}, {"training_seed": 9}, {"seed": 9}, {"arm": "other"}]
    for change in changes:
        told.append(score._inputs(EvaluateSection(), DATASET, [replace(samples[0], **change), *samples[1:]], examples))
    assert all(told[i] != told[j] for i in range(len(told)) for j in range(i))
