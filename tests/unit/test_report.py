"""The page is one file, says everything, escapes everything, and its verdict claims no more than was found."""

from __future__ import annotations

import base64
import csv
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
from captune.recipe import TextSection
from captune.report import (
    Story,
    costs,
    differences,
    grids,
    matrix,
    pictures,
    render,
    summary,
    view,
    write_report,
)
from captune.report import wording as say
from captune.report.texts import parted
from captune.runs import StageFolder, read_records
from captune.types import (
    BASE,
    Caption,
    Comparison,
    Failure,
    Score,
    Stability,
)
from tests.drawn_story import drawn_story

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline", "rect"}


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


ARMS = ("human", "blip", "shuffled")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Three arms of three trainings each, one of which did not end."""
    folder = tmp_path_factory.mktemp("story")
    return drawn_story(folder, subject_prompts=7, ordinary_prompts=6, seeds=1, arms=ARMS, failed=("blip", 2), size=32)


@pytest.fixture(scope="module")
def text(story: Story) -> str:
    return render(story)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def anchors(page: Page) -> set[str | None]:
    return {attributes.get("id") for _, attributes in page.tags}


def alts(page: Page) -> list[str]:
    return [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]


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


def test_the_page_has_every_section_and_links_to_it(page: Page) -> None:
    sections = {anchor for anchor, _ in view.CONTENTS}
    assert sections <= anchors(page)
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {f"#{anchor}" for anchor in sections}


def test_every_prompt_caption_and_sentence_is_on_the_page(story: Story, page: Page) -> None:
    for words in (
        *(sample.prompt for sample in story.samples),
        *(caption.text for captions in story.captions.values() for caption in captions),
        *(comparison.sentence for comparison in story.comparisons),
        *(facts.meaning for facts in story.metrics.values()),
        *(choice.rule for choice in story.epochs),
        view.verdict_of(story).subject,
        story.command,
    ):
        assert " ".join(words.split()) in page.text


def test_every_sample_is_shown_once_with_its_prompt_as_its_words(story: Story, page: Page) -> None:
    shown = [alt for alt in alts(page) if ", seed 0" in alt]
    finished = grids.finished(story)
    assert len(shown) == len(finished)
    for sample in finished:
        trained = f", training seed {sample.training_seed}" if sample.arm != BASE else ""
        who = sample.arm if sample.arm != BASE else "without LoRA"
        assert f"{sample.prompt} ({who}, seed {sample.seed}{trained})" in shown


def test_one_training_seed_is_seen_and_the_others_unfold(story: Story) -> None:
    group = grids.groups(story)[0]
    assert [column.name for column in group.sheet.columns] == [BASE, *ARMS]
    assert group.sheet.training_seed == 0
    assert [(other.training_seed, [c.name for c in other.columns]) for other in group.others] == [
        (1, list(ARMS)),
        (2, list(ARMS)),
    ]
    assert group.others[1].rows[0].cells[1] == []  # blip's third training did not end


def test_the_training_seed_that_most_arms_have_is_seen(story: Story) -> None:
    without = [s for s in story.samples if (s.arm, s.training_seed) != ("human", 0)]
    assert grids.groups(dataclasses.replace(story, samples=without))[0].sheet.training_seed == 1


def test_small_pictures_are_kept_to_the_byte(story: Story, page: Page) -> None:
    sample = next(s for s in grids.finished(story) if s.arm == "human")
    img = next(a for tag, a in page.tags if tag == "img" and f"{sample.prompt} (human, seed 0" in (a["alt"] or ""))
    uri = img["src"] or ""
    assert img["class"] == "crisp" and uri.startswith("data:image/png;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == sample.path.read_bytes()


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    picture = pictures.embed(tmp_path / "a.png", 384)
    assert (picture.width, picture.height, picture.crisp) == (384, 256, False)
    assert picture.uri.startswith(("data:image/webp;", "data:image/jpeg;"))


def test_small_pictures_that_browsers_may_not_show_become_png(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "a.tiff")
    picture = pictures.embed(tmp_path / "a.tiff", 384)
    shown = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
    assert (shown.format, shown.size, shown.getpixel((0, 0))) == ("PNG", (20, 10), (255, 0, 0))


def test_the_more_pictures_the_smaller_they_are_shown() -> None:
    assert [pictures.longest_side(count) for count in (10, 700, 100_000)] == [384, 224, 160]


def test_the_page_tells_its_own_weight(text: str, page: Page) -> None:
    assert f"{len(alts(page)):,} pictures, {len(text) / 1e6:.1f} MB" in page.text


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
            "prepare": {
                "seconds": 1.0,
                "warnings": [evil],
                "skipped": [{"file": evil, "reason": evil}],
                "machine": evil,
            },
        },
        metrics={n: dataclasses.replace(f, encoder=evil, warnings=(evil,)) for n, f in story.metrics.items()},
        comparisons=[dataclasses.replace(c, sentence=evil) for c in story.comparisons],
        failures=[Failure("blip", 2, evil)],
        epochs=[dataclasses.replace(choice, rule=evil) for choice in story.epochs],
        repeated={evil: True},
        command=evil,
    )
    text = render(changed)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((a.get("src") or "data:").startswith("data:") for _, a in page.tags)
    assert "<script" not in text and html.escape(evil, quote=False).replace('"', "&#34;") in text
    assert " ".join(evil.split()) in page.text


def test_the_trigger_word_is_marked_in_captions_and_prompts(text: str) -> None:
    assert text.count("<mark>jefpajot</mark>") > 20
    assert say.marked("Jefpajots like a JEFPAJOT", "jefpajot") == [("Jefpajots like a ", False), ("JEFPAJOT", True)]
    assert say.marked("a cat", "") == [("a cat", False)]


def test_what_the_base_does_not_read_is_struck_out(story: Story, text: str, page: Page) -> None:
    tokens = story.tokens["human"]["01"]
    assert tokens.over > 0
    assert f"{tokens.count} tokens, the last {tokens.over} are not read" in page.text
    assert f"<del>{tokens.lost}</del>" in text and text.count("<del>") == 1


def test_lost_words_are_found_by_their_letters() -> None:
    assert parted("A red fox, at Dawn", "") == ("A red fox, at Dawn", "")
    assert parted("A red fox , at Dawn.", "at dawn .") == ("A red fox , ", "at Dawn.")
    assert parted("fox", "a much longer text") == ("", "fox")


def test_a_prompt_that_stands_in_the_captions_is_marked(story: Story, page: Page) -> None:
    assert page.text.count("stands in the training captions of human") == 3  # in the sheet of every training seed


def test_failures_are_told_in_a_box(page: Page) -> None:
    assert "One training did not end" in page.text
    assert "blip, training seed 2: CUDA ran out of memory; set train.batch_size lower" in page.text


def test_settings_of_one_arm_alone_are_told(story: Story) -> None:
    arms = [arm.model_copy(update={"train": {"rank": 16}} if arm.name == "blip" else {}) for arm in story.recipe.arm]
    changed = dataclasses.replace(story, recipe=story.recipe.model_copy(update={"arm": arms}))
    assert "rank = 16" in Page(render(changed)).text
    assert "differ in more than their captions" in Page(render(changed)).text


def test_text_rules_tell_arms_of_one_captioner_apart(story: Story) -> None:
    rules = TextSection.model_validate({"absorb": 0.6, "ban": ["openers"]})
    arms = [arm.model_copy(update={"text": rules} if arm.name == "blip" else {}) for arm in story.recipe.arm]
    changed = dataclasses.replace(story, recipe=story.recipe.model_copy(update={"arm": arms}))
    assert "blip, mini; then ban = ['openers'], absorb = 0.6" in Page(render(changed)).text


def test_tables_have_headers(page: Page) -> None:
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert len(tables) >= 12
    assert all(attributes.get("scope") in ("col", "row", "rowgroup", "colgroup") for attributes in headers)


# Scores and differences


def test_the_primary_measure_comes_first_with_floor_and_ceiling(story: Story) -> None:
    table = view.page(story)["scores"]
    assert [column.name for column in table.columns] == [BASE, *ARMS, "real"]
    first, *others = table.measures
    assert first.facts.name == story.recipe.primary and first.primary and not any(m.primary for m in others)
    assert first.floor is not None and first.ceiling is not None
    assert len({m.facts.name for m in table.measures}) == len(story.metrics)


def test_right_of_the_zero_line_always_means_better_for_the_first(story: Story) -> None:
    rows = [row for forest in differences.forests(story) for panel in forest.panels for row in panel.rows]
    assert len(rows) == len(story.comparisons)
    told = [row for row in rows if row.told]
    assert {row.at > 50 for row in told} == {True, False}
    assert all((row.at > 50) == (row.verdict == f"{row.first.label} better") for row in told)


def test_the_zero_line_lies_within_an_interval_that_holds_zero(story: Story) -> None:
    for forest in differences.forests(story):
        shown = {(panel.title, r.first.name, r.second.name): r for panel in forest.panels for r in panel.rows}
        for c in forest.sentences:
            row = shown[story.metrics[c.metric].title, c.first, c.second]
            assert (row.low <= 50 <= row.high) == (c.low <= 0 <= c.high)
            assert row.low <= row.at <= row.high


def test_a_design_that_cannot_detect_anything_says_so(story: Story) -> None:
    blind = [dataclasses.replace(c, minimal_detectable_difference=float("inf")) for c in story.comparisons]
    changed = dataclasses.replace(story, comparisons=blind)
    assert differences.forests(changed)[0].panels[0].rows[0].detectable == "–"
    assert Page(render(changed)).open == []
    numbers = summary.summarized(changed)["comparisons"][0]
    assert numbers["minimal_detectable_difference"] is None  # JSON knows no infinity


# The other sections


def test_the_recommended_epoch_is_marked_in_every_strip(story: Story) -> None:
    progress = grids.progress(story)
    assert progress is not None
    assert progress.labels == ["epoch 10", "epoch 20", "epoch 30", "epoch 40", "finished"]
    marked = {strip.column.name: [c.label for c in strip.cells if c.chosen] for strip in progress.strips}
    assert marked == {"human": ["epoch 40"], "blip": ["epoch 30"], "shuffled": ["epoch 30"]}
    assert [cell.text for cell in progress.means[0].cells] == ["5%", "31%", "88%", "90%", ""]


def test_a_reproduction_stands_beside_the_bases_of_the_same_words(story: Story) -> None:
    found = grids.reproduced(story)
    assert found is not None
    rows, others = found
    assert [row.name for row in rows] == [example.id for example in story.examples]
    for column, pair in rows[0].cells:
        caption = next(c.text for c in story.captions[column.name] if c.example_id == rows[0].name)
        assert [shown.alt for shown in pair] == [f"{caption} (without LoRA)", f"{caption} ({column.name})"]
    assert [seed for seed, _ in others] == [1, 2]
    assert all(len(pair) == 1 for _, rows in others for row in rows for _, pair in row.cells)


def test_the_lowest_loss_of_the_matrix_is_the_warmest(story: Story) -> None:
    table = matrix.heat_table(story)
    assert table is not None
    assert [row.column.name for row in table.rows] == [BASE, *ARMS]
    cells = [cell for row in table.rows for cell in row.cells if cell]
    assert [cell.share for cell in sorted(cells, key=lambda cell: cell.value)] == sorted(
        (c.share for c in cells), reverse=True
    )
    assert sum(cell.own for cell in cells) == len(ARMS)
    assert table.rows[0].abroad == "" and all(row.abroad.startswith("+") for row in table.rows[1:])


def test_reproducibility_has_four_figures(story: Story, page: Page) -> None:
    found = matrix.figures(story)
    assert found is not None
    assert [figure.title for figure in found[1]] == ["Subject reproduction", "Seed stability", "Retrain stability"]
    assert "LoRA file: equal" in page.text
    assert "study.repeat = true" in Page(render(dataclasses.replace(story, repeated={}))).text


def test_what_one_training_cannot_tell_is_not_told(story: Story) -> None:
    alone = dataclasses.replace(story, stability=[Stability(arm, "clip_i", 0.02, None) for arm in ARMS])
    found = matrix.figures(alone)
    assert found is not None
    assert found[1][2].cells[0] == ("not known", "needs several study.training_seeds")


def test_effort_counts_every_training_of_an_arm(story: Story) -> None:
    effort = costs.effort(story)
    assert effort is not None
    rows = {row.label: row.cells for row in effort.efforts}
    assert rows["Training"] == ["31 s × 3", "30 s × 2", "31 s × 3"]
    assert rows["Writing captions, by people"] == ["14 min", "", ""]
    assert rows["Captions cut"][1:] == ["none", "none"]
    assert [scatter.x_title[:6] for scatter in effort.scatters] == ["tokens", "minute"]


def test_captions_by_hand_without_recorded_minutes_have_no_place_in_the_plot(story: Story) -> None:
    arms = [arm.model_copy(update={"human_minutes": None}) for arm in story.recipe.arm]
    effort = costs.effort(dataclasses.replace(story, recipe=story.recipe.model_copy(update={"arm": arms})))
    assert effort is not None
    assert {row.label: row.cells[0] for row in effort.efforts}["Writing captions, by people"] == "not recorded"
    assert [point.column.name for point in effort.scatters[1].points] == ["blip", "shuffled"]


def test_api_tokens_are_told(story: Story) -> None:
    paid = {**story.costs, "arms/blip/caption": {"seconds": 2.0, "api_tokens": {"prompt": 900, "completion": 134}}}
    changed = dataclasses.replace(story, costs=paid)
    assert costs.api_tokens(changed, "blip") == 1034
    assert summary.summarized(changed)["tokens"]["blip"]["api_tokens"] == 1034
    assert "1,034" in Page(render(changed)).text


def test_a_stage_is_booked_on_whom_it_belongs_to() -> None:
    places = {
        "prepare": ("", "prepare"),
        "repeat/train": ("", "repeat"),
        "base/sample": (BASE, "sample"),
        "base/reproduction/human": (BASE, "reproduction"),
        "arms/human/caption": ("human", "caption"),
        "arms/human/seed-3/train": ("human", "train"),
    }
    assert {place: costs.place_of(place) for place in places} == places


# The whole


def test_a_story_with_little_to_tell_makes_a_page(story: Story) -> None:
    bare = Story(story.recipe, story.run, story.examples, story.captions, samples=[])
    page = Page(render(bare))
    assert not anchors(page) & {
        anchor for anchor, _ in view.CONTENTS if anchor not in ("captioned", "effort", "hashes")
    }
    assert summary.summarized(bare)["comparisons"] == []


def test_one_arm_without_a_base_makes_a_page(tmp_path: Path) -> None:
    story = drawn_story(
        tmp_path,
        subject_prompts=2,
        ordinary_prompts=0,
        seeds=1,
        progress=False,
        arms=("human",),
        training_seeds=(0,),
        size=32,
        held_out=2,
    )
    without = [s for s in story.samples if s.arm != BASE]
    page = Page(render(dataclasses.replace(story, samples=without, intervals={}, scores=[], comparisons=[])))
    assert "human" in page.text and "held-out pictures, which none was trained on" in page.text
    assert "training seed" not in " ".join(alts(page))
    assert "1 LoRA of" in page.text and "over its own" not in page.text, "one arm has no others' captions"


def test_the_report_is_written_once_and_again_when_something_changed(story: Story, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "report")
    page = write_report(story, folder, Silent())
    before = page.stat().st_mtime_ns
    assert write_report(story, folder, Silent()).stat().st_mtime_ns == before
    changed = dataclasses.replace(story, comparisons=story.comparisons[1:])
    assert write_report(changed, folder, Silent()).stat().st_mtime_ns != before


def test_the_same_story_gives_the_same_bytes(story: Story, text: str) -> None:
    assert render(story) == text


# The numbers for programs


def test_the_summary_holds_the_numbers(story: Story, tmp_path: Path) -> None:
    page = write_report(story, StageFolder(tmp_path / "report"), Silent())
    numbers = json.loads((page.parent / "summary.json").read_text())
    human = story.intervals["human"]["clip_t"]
    assert numbers["arms"]["human"]["clip_t"] == {
        "mean": human.mean,
        "low": human.low,
        "high": human.high,
        "n": human.n,
    }
    assert set(numbers["base"]) >= {"clip_t", "clip_i", "oracle_subject"}
    assert set(numbers["real"]) == {"clip_i", "oracle_subject"}
    assert numbers["primary"] == "oracle_subject"
    assert numbers["training_runs"] == {"human": [0, 1, 2], "blip": [0, 1], "shuffled": [0, 1, 2]}
    assert numbers["comparisons"] == json.loads(json.dumps([dataclasses.asdict(c) for c in story.comparisons]))
    assert numbers["matrix"]["losses"]["human"]["blip"]["mean"] == story.matrix["human"]["blip"].mean
    assert numbers["failures"][0]["training_seed"] == 2
    assert numbers["epochs"][0]["recommended"] == 40
    assert numbers["tokens"]["human"]["cut"] == 1 and numbers["tokens"]["human"]["limit"] == 48
    assert numbers["timings"]["seconds"]["prepare"] == 0.4
    assert numbers["timings"]["pictures_per_second"]["arms/human/seed-2/train"] == 15.4
    assert numbers["versions"]["torch"] == "2.13.0"
    assert numbers["hashes"]["adapters"]["blip"]["1"] == story.adapters["blip"][1].sha256
    assert numbers["exports"]["human"][0]["file"] == "jefpajot-human-seed0.safetensors"


def test_equal_runs_have_equal_summaries_but_for_the_timings(story: Story) -> None:
    slower = {place: {**m, "seconds": 9.0, "peak_mib": 1.0} for place, m in story.costs.items()}
    elsewhere = Path("/elsewhere/jefpajot")
    reason = "cannot write {}/arms/blip/seed-2/train"
    first = dataclasses.replace(story, failures=[Failure("blip", 2, reason.format(story.run.absolute()))])
    again = dataclasses.replace(
        story, run=elsewhere, costs=slower, failures=[Failure("blip", 2, reason.format(elsewhere))]
    )
    one, two = summary.summarized(first), summary.summarized(again)
    assert one.pop("timings") != two.pop("timings")
    assert one == two
    assert str(story.run) not in json.dumps(one)


def test_scores_and_comparisons_are_tables_too(story: Story, tmp_path: Path) -> None:
    page = write_report(story, StageFolder(tmp_path / "report"), Silent())
    assert read_records(page.with_name("scores.jsonl"), Score) == list(story.scores)
    with page.with_name("comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Comparison)]
    assert [row["sentence"] for row in rows] == [c.sentence for c in story.comparisons]
    assert float(rows[0]["difference"]) == story.comparisons[0].difference
