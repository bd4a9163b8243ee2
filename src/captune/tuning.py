"""A captioner's tuning in order: pictures with captions, what the base says, the LoRA, what the tuned one says, the verdict.

The folder itself is the adapter that peft loads, with its model card; the stages lie below it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import captune
from captune import captioners, captions, recipe, runs, weights
from captune.captioners._lora import CONFIG, TENSORS
from captune.errors import DataError, RecipeError
from captune.parts import unknown
from captune.prepare.captioned import prepare_captioned
from captune.progress import Progress
from captune.recipe import TuneRecipe, TuneSection
from captune.report.tuning import Before, TuningStory, write_tuning_page
from captune.runs import StageFolder
from captune.types import CaptionDifference, CaptionedPicture

if TYPE_CHECKING:
    from captune.metrics.captions import Scored
    from captune.train.captioner import Said

CARD = "README.md"
SIDES = {"train": "to train on", "validation": "to tell the best epoch", "test": "to be judged on"}
TOKEN = "HF_TOKEN"


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to."""

    adapter: Path
    verdict: str
    differences: Sequence[CaptionDifference]
    report: Path
    already_done: bool


def check(section: TuneSection) -> None:
    """Refuse what cannot be done, before anything is loaded."""
    from captune.metrics.captions import METRICS
    from captune.train import captioner

    captioners.check_tunable(section.captioner)
    for name in section.metrics:
        if name not in METRICS:
            raise unknown("caption metric", name, METRICS)
    captioner.check(section)
    if section.push and not os.environ.get(TOKEN):
        raise RecipeError(f"tune.push = {section.push!r} needs a token of the hub in the environment: {TOKEN}=...")


def tune(chosen: TuneRecipe, folder: Path, progress: Progress, command: str = "") -> Tuned:
    """Tune the captioner, or continue, or return what was done; `folder` becomes the adapter."""
    from captune.train import captioner

    check(chosen.tune)
    told = captioners.filled(chosen.tune.captioner)
    section = chosen.tune.model_copy(update={"captioner": told})
    chosen = chosen.model_copy(update={"tune": section})
    before = _manifests(folder)
    runs.write_text(folder / "recipe.toml", recipe.as_toml(chosen))
    pictures = prepare_captioned(section, StageFolder(folder / "data"), progress)
    base = runs.fingerprint(
        [
            {**told.model_dump(mode="json"), "trigger": ""},
            weights.identity(told.model, told.name),
            [section.precision, section.quantize, section.device],
        ]
    )

    @cache
    def network() -> Any:
        progress.say(f"loading {told.model}")
        loaded = captioners.load_tunable(told, section.device, section.precision, section.quantize)
        captioner.targets_of(section, loaded)  # what hits nothing is refused before any work
        return loaded

    test = [p for p in pictures if p.split == "test"]
    said: dict[str, list[Said]] = {"base": [], "tuned": []}
    if test:
        said["base"] = captioner.write_captions(
            network, base, test, StageFolder(folder / "base"), progress, "caption before"
        )
    trained = captioner.train_captioner(section, base, network, pictures, StageFolder(folder / "train"), progress)
    for name in (TENSORS, CONFIG):
        with runs.atomic(folder / name) as part:
            shutil.copyfile(trained / name, part)
    network.cache_clear()  # the tuned captioner is another one: two do not fit into every memory
    if test:
        adapter = runs.sha256_of(folder / TENSORS)
        said["tuned"] = captioner.write_captions(
            lambda: captioners.load_tuned(told, folder, section.device, section.precision, section.quantize),
            runs.fingerprint([base, adapter]),
            test,
            StageFolder(folder / "tuned"),
            progress,
            "caption after",
        )
    story = _story(chosen, folder, pictures, test, said, command)
    page = write_tuning_page(story, StageFolder(folder / "report"))
    runs.write_text(folder / CARD, card(story))
    if section.merged:
        _merge(section, folder, progress)
    if section.push:
        _push(section, folder, progress)
    done = bool(before) and _manifests(folder) == before
    return Tuned(folder, story.verdict, story.differences, page, done)


def _story(
    chosen: TuneRecipe,
    folder: Path,
    pictures: Sequence[CaptionedPicture],
    test: Sequence[CaptionedPicture],
    said: Mapping[str, Sequence[Said]],
    command: str,
) -> TuningStory:
    """What the page and the card tell, put together from the stages."""
    from captune.evaluate.captioning import PRIMARY, beside, compare_captions
    from captune.train.captioner import SAMPLES

    section = chosen.tune
    learned = [text for p in pictures if p.split == "train" for text in p.references]
    scored = {name: _score(section, of, test, learned) for name, of in said.items()} if test else {}
    samples = folder / "train" / SAMPLES

    def told(name: str) -> dict[str, Before]:
        per = scored[name].per_caption if scored else {}
        return {s.id: Before(s.text, s.ended, per[s.id].get(PRIMARY, 0.0)) for s in said[name]}

    data = StageFolder(folder / "data").manifest()
    training = StageFolder(folder / "train").manifest()
    kept = ("steps_done", "epochs_done", "arithmetic", "trainable_parameters", "modules", "targets", "training_seconds")
    more = ("watched", "validation", "best_epoch", "stopped", "warnings")
    return TuningStory(
        name=chosen.name,
        captioner=section.captioner.model_dump(mode="json"),
        settings={
            **section.model_dump(mode="json", exclude={"captioner", "push"}, exclude_none=True),
            "learning_rate": section.rate,
        },
        differences=compare_captions(scored["base"], scored["tuned"]) if scored else [],
        beside=beside(scored["base"], scored["tuned"]) if scored else {},
        primary=PRIMARY,
        pictures=test,
        base=told("base"),
        tuned=told("tuned"),
        warnings=_warnings(scored["tuned"]) if scored else [],
        facts=scored["tuned"].facts if scored else {},
        data={
            name: data[name] for name in ("pictures", "split", "references_per_picture", "near_duplicates", "warnings")
        },
        training={name: training[name] for name in (*kept, *more) if name in training},
        progress=[json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else [],
        command=command,
    )


def _score(
    section: TuneSection, said: Sequence[Said], test: Sequence[CaptionedPicture], learned: Sequence[str]
) -> Scored:
    from captune.metrics.captions import score
    from captune.train.captioner import scored_texts

    told = section.captioner
    candidates, references = scored_texts(said, test, told.prompt)
    decode = {"max_new_tokens": told.max_new_tokens, "beams": told.beams, "prompt": told.prompt}
    return score(candidates, references, section.metrics, training=learned, decode=decode)


def _warnings(scored: Scored) -> list[str]:
    return [*scored.warnings, *(f"{name} could not be had: {reason}" for name, reason in scored.absent.items())]


def card(story: TuningStory) -> str:
    """The adapter's model card: what it is, what it scores, and how it is used."""
    rows = [
        f"| {d.metric} | {d.base:.3f} | {d.tuned:.3f} | {d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f}) | {d.verdict} |"
        for d in story.differences
    ]
    model, name = story.captioner["model"], story.captioner["name"]
    front = {"library_name": "peft", "pipeline_tag": "image-to-text", "tags": ["captune", "lora", name]}
    if model != weights.MINI:
        front["base_model"] = model
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {story.name}",
        "",
        f"A LoRA (rank {story.settings['rank']}, alpha {story.settings['alpha']:g}) for the captioner `{model}`, "
        f"trained with captune {captune.__version__}.",
        "",
        story.verdict,
    ]
    if rows:
        ended = story.ended
        facts = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in story.facts.items())
        lines += [
            "",
            "| metric | before | after | difference a picture, 95% interval | verdict |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Captions that end by themselves: {ended['base']:.1%} before, {ended['tuned']:.1%} after. {facts}.",
        ]
        lines += ["", *(f"- {line}" for line in story.warnings)] if story.warnings else []
    split = ", ".join(f"{story.data['split'][side]} {what}" for side, what in SIDES.items())
    lines += [
        "",
        f"Pictures: {split}; split by picture, near-duplicates on one side.",
        "",
        "In a captune recipe:",
        "",
        "```toml",
        f'captioner = {{ name = "{name}", model = "{model}", adapter = "<this folder>" }}',
        "```",
        "",
    ]
    return "\n".join(lines)


def _merge(section: TuneSection, folder: Path, progress: Progress) -> None:
    """Write the whole model with the LoRA in it, as transformers loads it."""
    stage = StageFolder(folder / "merged")
    inputs = {
        "adapter": runs.sha256_of(folder / TENSORS),
        "base": weights.identity(section.captioner.model, section.captioner.name),
    }
    if stage.done(inputs):
        return
    stage.begin(inputs)
    network = captioners.load_tuned(section.captioner, folder, "cpu", "fp32")
    network.model.save_pretrained(stage.path)
    network.processor.save_pretrained(stage.path)
    files = [path for path in stage.path.iterdir() if path.suffix in (".json", ".safetensors")]
    stage.finish(inputs, [path for path in files if path.name != "started.json"])
    progress.say(f"merged model: {stage.path}")


def _push(section: TuneSection, folder: Path, progress: Progress) -> None:
    """Upload the adapter and its card; the token is read from the environment and told to nobody."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi(token=os.environ[TOKEN])
        hub.create_repo(section.push, exist_ok=True)
        hub.upload_folder(repo_id=section.push, folder_path=str(folder), allow_patterns=[TENSORS, CONFIG, CARD])
    except Exception as error:  # the library raises anything, from a missing network to a refused token
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(os.environ[TOKEN], "***")
        raise DataError(f"tune.push = {section.push!r}: the hub did not take the adapter ({reason})") from error
    progress.say(f"uploaded: {captions.one_line(section.push)}")


def _manifests(folder: Path) -> dict[str, str]:
    return {str(p): runs.sha256_of(p) for p in sorted(folder.rglob("manifest.json"))}
