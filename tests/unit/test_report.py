"""The page is one file, says everything, escapes everything, and its verdict claims no more than was found."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.errors import DataError
from captune.progress import Silent
from captune.report import Story, curves, pictures, render, view, write_report
from captune.report.verdict import caveat, verdict
from captune.runs import StageFolder
from captune.types import Caption, Comparison, Interval
from tests.drawn_story import drawn_story

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline", "col"}


class Page(HTMLParser):
    """Every tag with its attributes, checked to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return drawn_story(tmp_path_factory.mktemp("story"), subject_prompts=8, ordinary_prompts=6)


@pytest.fixture(scope="module")
def text(story: Story) -> str:
    return render(story)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_on_the_page_is_loaded_from_anywhere(text: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "background"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text and "@font-face" not in text
    assert not re.search(r"url\s*\(", text)
    assert "default-src 'none'" in text


def test_the_page_is_whole_html(text: str, page: Page) -> None:
    assert text.startswith("<!doctype html>")
    assert page.open == []


def test_every_prompt_caption_and_sentence_is_on_the_page(story: Story, page: Page) -> None:
    for words in (
        *(sample.prompt for sample in story.samples),
        *(caption.text for captions in story.captions.values() for caption in captions),
        *(comparison.sentence for comparison in story.comparisons),
        *(facts.meaning for facts in story.metrics.values()),
        view.verdict_of(story).subject,
    ):
        assert " ".join(words.split()) in page.text


def test_every_sample_is_shown_with_its_prompt_as_its_words(story: Story, page: Page) -> None:
    alts = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    assert all(alts)
    for sample in story.samples:
        assert any(sample.prompt in alt for alt in alts)
    finished = [sample for sample in story.samples if sample.epoch == 0]
    assert sum("seed" in alt for alt in alts) == len(finished)


def test_small_pictures_are_kept_to_the_pixel(story: Story, page: Page) -> None:
    grid = [a for tag, a in page.tags if tag == "img" and "seed" in (a["alt"] or "")]
    uri, first = (
        grid[0]["src"] or "",
        min(story.samples, key=lambda s: (s.prompt_index, s.arm != "base", s.epoch, s.seed)),
    )
    assert grid[0]["class"] == "crisp" and uri.startswith("data:image/png;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert shown.tobytes() == Image.open(first.path).convert("RGB").tobytes()


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    picture = pictures.embed(tmp_path / "a.png", 384)
    assert (picture.width, picture.height, picture.crisp) == (384, 256, False)
    assert picture.uri.startswith(("data:image/webp;", "data:image/jpeg;"))


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the report needs the picture .*gone\.png"):
        pictures.embed(tmp_path / "gone.png", 100)


def test_what_comes_from_outside_is_escaped(story: Story) -> None:
    evil = '<script>alert("x")</script><img src=https://example.com/x.png onerror=alert(1)>'
    changed = dataclasses.replace(
        story,
        samples=[dataclasses.replace(sample, prompt=f"a jefpajot {evil}") for sample in story.samples],
        captions={arm: [Caption(c.example_id, evil, c.captioner) for c in cs] for arm, cs in story.captions.items()},
        costs={
            **story.costs,
            "prepare": {"seconds": 1.0, "warnings": [evil], "skipped": [{"file": evil, "reason": evil}]},
        },
        metrics={n: dataclasses.replace(f, encoder=evil, warnings=(evil,)) for n, f in story.metrics.items()},
        comparisons=[dataclasses.replace(c, sentence=evil) for c in story.comparisons],
    )
    text = render(changed)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((a.get("src") or "data:").startswith("data:") for _, a in page.tags)
    assert "<script" not in text and html.escape(evil, quote=False).replace('"', "&#34;") in text
    assert " ".join(evil.split()) in page.text


def test_the_trigger_word_is_marked_in_captions_and_prompts(text: str) -> None:
    assert text.count("<mark>jefpajot</mark>") > 20
    assert view.marked("Jefpajots like a JEFPAJOT", "jefpajot") == [("Jefpajots like a ", False), ("JEFPAJOT", True)]
    assert view.marked("a cat", "") == [("a cat", False)]


def test_cut_captions_are_said(page: Page) -> None:
    assert "52 tokens, the last 4 are not read" in page.text


def test_floor_and_ceiling_are_drawn(page: Page) -> None:
    lines = [attributes.get("class") for tag, attributes in page.tags if tag == "line"]
    assert lines.count("floor") > lines.count("ceiling") > 0


def test_tables_have_headers(page: Page) -> None:
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert len(tables) >= 8
    assert all(attributes.get("scope") in ("col", "row") for attributes in headers)


def test_a_story_with_little_to_tell_makes_a_page(story: Story) -> None:
    bare = Story(story.recipe, story.run, story.examples, story.captions, samples=[])
    page = Page(render(bare))
    assert "How well the subject was taught was not measured." in page.text
    assert not {a.get("id") for _, a in page.tags} & {"scores", "comparisons", "samples", "progress", "losses", "files"}


def test_one_arm_without_a_base_makes_a_page(tmp_path: Path) -> None:
    story = drawn_story(tmp_path, subject_prompts=2, ordinary_prompts=0, seeds=1, progress=False, arms=("human",))
    alone = dataclasses.replace(story, samples=[s for s in story.samples if s.arm != "base"], intervals={}, scores=[])
    assert "human" in Page(render(alone)).text


def test_the_report_is_written_once_and_again_when_something_changed(story: Story, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "report")
    page = write_report(story, folder, Silent())
    before = page.stat().st_mtime_ns
    assert write_report(story, folder, Silent()).stat().st_mtime_ns == before
    changed = dataclasses.replace(story, comparisons=story.comparisons[1:])
    assert write_report(changed, folder, Silent()).stat().st_mtime_ns != before


def test_the_same_story_gives_the_same_bytes(story: Story, text: str) -> None:
    assert render(story) == text


def test_the_summary_holds_the_numbers(story: Story, tmp_path: Path) -> None:
    page = write_report(story, StageFolder(tmp_path / "report"), Silent())
    summary = json.loads((page.parent / "summary.json").read_text())
    human = story.intervals["human"]["clip_t"]
    assert summary["arms"]["human"]["clip_t"] == {
        "mean": human.mean,
        "low": human.low,
        "high": human.high,
        "n": human.n,
    }
    assert set(summary["base"]) >= {"clip_t", "clip_i", "oracle_subject"}
    assert set(summary["real"]) == {"clip_i", "oracle_subject"}
    assert summary["verdict"] == view.verdict_of(story).text
    assert summary["comparisons"][0]["sentence"] == story.comparisons[0].sentence
    assert summary["seconds"]["prepare"] == 0.4
    assert summary["seconds"]["arms"]["human"]["train"] == 31.0
    assert summary["tokens"]["human"] == {"mean": 21.3, "longest": 52, "cut": 1}
    assert summary["versions"]["torch"] == "2.13.0"
    assert summary["hashes"]["adapters"]["blip"] == story.adapters["blip"].sha256
    assert summary["exports"]["human"][0]["file"] == "arms/human/export/jefpajot-human.safetensors"


# The verdict


def interval(mean: float, clusters: int = 24) -> Interval:
    return Interval(mean, mean - 0.05, mean + 0.05, 2 * clusters, clusters)


def comparison(metric: str, first: str, second: str, mean: float, better: str | None) -> Comparison:
    return Comparison(metric, first, second, Interval(mean, mean - 0.1, mean + 0.1, 48, 24), better, "")


def test_the_verdict_names_the_arm_that_taught_best() -> None:
    told = verdict(
        {
            "human": {"oracle_subject": interval(0.88), "oracle_prompt": interval(0.6)},
            "blip": {"oracle_subject": interval(0.46), "oracle_prompt": interval(0.63)},
            "base": {"oracle_subject": interval(0.0), "oracle_prompt": interval(1.0)},
            "real": {"oracle_subject": interval(1.0)},
        },
        [
            comparison("oracle_subject", "human", "blip", 0.42, "human"),
            comparison("oracle_subject", "human", "base", 0.88, "human"),
            comparison("oracle_subject", "blip", "base", 0.46, "blip"),
            comparison("oracle_prompt", "human", "blip", -0.03, None),
            comparison("oracle_prompt", "human", "base", -0.4, "base"),
            comparison("oracle_prompt", "blip", "base", -0.37, "base"),
        ],
    )
    assert told.subject == (
        "The arm human taught the subject best: it is in 88% of the pictures that ask for it with human, 46% with "
        "blip and 0% without a LoRA."
    )
    assert told.sure == "human leads blip by 42 points (32 to 52, 24 prompts)."
    assert told.following == (
        "Ordinary prompts are drawn as asked in 63% with blip, 60% with human and 100% without a LoRA: "
        "no detectable difference between the arms; blip and human detectably below the base model."
    )
    assert told.text == f"{told.subject} {told.sure} {told.following}"


def test_no_detectable_difference_is_a_legal_verdict() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"human": 0.8, "blip": 0.83, "base": 0.0}.items()},
        [
            comparison("oracle_subject", "human", "blip", -0.03, None),
            comparison("oracle_subject", "human", "base", 0.8, "human"),
            comparison("oracle_subject", "blip", "base", 0.83, "blip"),
        ],
    )
    assert told.subject == (
        "No detectable difference between blip and human in teaching the subject: it is in 83% of the pictures that "
        "ask for it with blip, 80% with human and 0% without a LoRA."
    )
    assert told.sure == "The difference between blip and human is 3 points (\N{MINUS SIGN}7 to 13, 24 prompts)."


def test_two_of_three_arms_can_share_the_lead() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"a": 0.8, "b": 0.75, "c": 0.2}.items()},
        [
            comparison("oracle_subject", "a", "b", 0.05, None),
            comparison("oracle_subject", "a", "c", 0.6, "a"),
            comparison("oracle_subject", "b", "c", 0.55, "b"),
        ],
    )
    assert told.subject.startswith(
        "The arms a and b taught the subject best, with no detectable difference between the two: it is in 80%"
    )


def test_arms_no_better_than_the_base_taught_nothing() -> None:
    told = verdict(
        {a: {"oracle_subject": interval(v)} for a, v in {"human": 0.04, "blip": 0.0, "base": 0.0}.items()},
        [
            comparison("oracle_subject", "human", "blip", 0.04, None),
            comparison("oracle_subject", "human", "base", 0.04, None),
            comparison("oracle_subject", "blip", "base", 0.0, None),
        ],
    )
    assert told.subject.startswith("No arm detectably taught the subject: it is in 4%")


def test_without_the_oracle_clip_judges() -> None:
    told = verdict(
        {
            "human": {"clip_i": interval(0.8), "clip_t": interval(0.28)},
            "base": {"clip_i": interval(0.6), "clip_t": interval(0.28)},
        },
        [comparison("clip_i", "human", "base", 0.2, "human"), comparison("clip_t", "human", "base", 0.0, None)],
    )
    assert told.text == (
        "The arm human taught the subject: its likeness to the training pictures is 0.800 with human and 0.600 "
        "without a LoRA. human leads the base model by 0.200 (0.100 to 0.300, 24 prompts). Prompt following (CLIP-T) is "
        "0.280 with human and 0.280 without a LoRA: not detectably changed by the LoRA."
    )


def test_few_prompts_allow_no_verdict() -> None:
    told = verdict({a: {"oracle_subject": interval(v, 4)} for a, v in {"human": 1.0, "base": 0.0}.items()}, [])
    assert told.subject.startswith("Too few prompts ask for the subject to tell a difference (below 6): it is in 100%")


def test_one_training_run_supports_a_claim_about_files_only() -> None:
    assert "about these files" in caveat(1)
    assert caveat(3).startswith("3 LoRAs were trained per arm")


# Curves and words


def test_smoothing_keeps_a_constant_and_a_line() -> None:
    assert np.allclose(curves.smoothed(np.full(20, 3.0), 7), 3.0)
    line = np.arange(30, dtype=float)
    assert np.allclose(curves.smoothed(line, 5)[2:-2], line[2:-2])


def test_ticks_are_round_and_inside() -> None:
    assert curves.ticks(0.0, 1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert curves.ticks(0.643, 0.912) == [0.7, 0.8, 0.9]


def test_long_curves_are_thinned_without_losing_their_peaks() -> None:
    rows = [{"step": s, "loss": 1.0} for s in range(1, 20_001)]
    rows[12_345]["loss"] = 9.0
    rows[77]["loss"] = float("nan")
    plot = curves.plot({"human": rows})
    assert plot is not None
    points = [tuple(map(float, point.split(","))) for point in plot.curves[0].raw.split()]
    assert len(points) <= curves.MOST_POINTS + 2
    assert min(y for _, y in points) == -2  # the peak leaves the frame at the top, but is drawn
    assert all(0 <= x <= 100 for x, _ in points)


def test_no_losses_no_plot() -> None:
    assert curves.plot({"human": []}) is None


def test_amounts_are_said_as_people_say_them() -> None:
    assert [view.duration(s) for s in (0.42, 34.2, 125, 4322)] == ["0.4 s", "34 s", "2 min 5 s", "1 h 12 min"]
    assert [view.size(n) for n in (12, 182_000, 1_250_000)] == ["12 bytes", "182.0 kB", "1.2 MB"]
    assert view.plural(1, "seed") == "1 seed" and view.plural(2000, "step") == "2,000 steps"
