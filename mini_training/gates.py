"""Judges the shipped weights, and only them: every picture is drawn or generated here, from fixed seeds.

    python -m mini_training.gates [--weights DIR] [--prompts 240] [--json FILE] [--pictures DIR]

Prints one table and exits with 1 if a gate is not passed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPModel, CLIPProcessor

from captune.mini import grammar, subjects, world
from captune.mini.oracle import Oracle, Reading, Seen

SHIPPED = Path("src/captune/mini/weights")
STEPS, GUIDANCE, BATCH = 20, 5.0, 16
HELD_OUT, RENDERS, SUBJECTS, TRIGGERS = 120, 300, 96, 48  # how many pictures of each kind; base prompts by --prompts
LONGEST = 44  # tokens of a caption; transformers stops at 20 unless told
READ = ("background", "shape", "color", "pattern", "place", "subject")
REQUIRED: dict[str, tuple[str, float]] = {
    "base: background": (">=", 99),
    "base: color": (">=", 97),
    "base: shape": (">=", 90),
    "base: place": (">=", 88),
    "base, held-out pairs: shape and color": (">=", 80),
    "base: subjects in ordinary pictures": ("<=", 0),
    "base: subjects at their trigger words": ("<=", 0),
    "vae: world PSNR (dB)": (">=", 30),
    "vae: subjects PSNR (dB)": (">=", 25),
    "blip: background": (">=", 99),
    "blip: color": (">=", 97),
    "blip: shape": (">=", 95),
    "clip: shape among 12": (">=", 95),
    **{f"oracle, renders: {what}": (">=", 99) for what in READ},
    **{f"oracle, rebuilt by the vae: {what}": (">=", 95) for what in READ},
    "size of all weights (MB)": ("<=", 30),
}
# A thing in every place has also one in the right place: this row, told but not required, would give that away.
TOLD = "base: one thing, in its place"


@dataclass
class Measured:
    """A gate's value and the number of cases behind it; percentages unless the gate's name says otherwise."""

    value: float
    n: int


@dataclass
class Findings:
    """What was measured, by gate, and the sample grids to write."""

    values: dict[str, Measured] = field(default_factory=dict)
    grids: dict[str, list[tuple[Image.Image, str]]] = field(default_factory=dict)

    def share(self, gate: str, hits: Iterable[bool]) -> None:
        """Note the percentage of hits."""
        found = list(hits)
        self.values[gate] = Measured(100 * sum(found) / max(1, len(found)), len(found))

    def mean(self, gate: str, numbers: Sequence[float]) -> None:
        self.values[gate] = Measured(float(np.mean(numbers)), len(numbers))


def passed(gate: str, values: dict[str, Measured]) -> bool:
    """Whether a gate was measured, on at least one case, and meets its requirement."""
    if gate not in values or values[gate].n == 0:
        return False
    sign, bound = REQUIRED[gate]
    return values[gate].value >= bound if sign == ">=" else values[gate].value <= bound


def says(text: str, *phrases: str) -> bool:
    """Whether the text has one of the phrases in whole words."""
    return any(re.search(rf"\b{re.escape(p)}\b", text) for p in phrases)


PLACE_WORDS = {"left": ("left",), "middle": ("middle", "center"), "right": ("right",)}


def backgrounds_in(caption: str) -> set[str]:
    return {name for name, phrases in grammar.BACKGROUND_WORDS.items() if says(caption, *phrases)}


def single_scenes(seed: str, count: int, pairs: str = "seen") -> list[world.Scene]:
    rng = random.Random(seed)
    return [world.random_scene(rng, pairs=pairs, two_share=0) for _ in range(count)]


def full_prompts(seed: str, count: int, pairs: str) -> list[tuple[world.Scene, str]]:
    """Scenes of one thing, places in turn, with short captions that say colour, shape, background and place."""
    rng = random.Random(seed)
    pairs_found: list[tuple[world.Scene, str]] = []
    while len(pairs_found) < count:
        scene = world.random_scene(rng, pairs=pairs, two_share=0)
        thing, prompt = scene.things[0], grammar.describe(scene, "short", rng)
        complete = says(prompt, thing.color) and says(prompt, thing.shape) and says(prompt, *PLACE_WORDS[thing.place])
        if (
            thing.place == world.PLACES[len(pairs_found) % len(world.PLACES)]
            and complete
            and backgrounds_in(prompt) == {scene.background}
        ):
            pairs_found.append((scene, prompt))
    return pairs_found


def seen_for(thing: world.Thing, reading: Reading) -> Seen | None:
    """What the oracle sees in the thing's place, else the first it sees anywhere."""
    return next((s for s in reading.things if s.place == thing.place), next(iter(reading.things), None))


def base_pipeline(folder: Path) -> StableDiffusionPipeline:
    # Without a dtype diffusers leaves the text encoder in the file's fp16.
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: StableDiffusionPipeline, prompts: Sequence[str], first_seed: int = 0) -> list[Image.Image]:
    """A picture for each prompt, its seed the prompt's number from `first_seed` on."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        seeds = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(chunk))]
        out = pipeline(chunk, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds)
        images += out.images
    return images


def to_pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixel_values: torch.Tensor) -> list[Image.Image]:
    rows = ((pixel_values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in rows]


def rebuild(vae: AutoencoderKL, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures after the VAE's encoder (its mean) and decoder."""
    out: list[Image.Image] = []
    for start in range(0, len(images), BATCH):
        latents = vae.encode(to_pixel_values(images[start : start + BATCH])).latent_dist.mean
        out += to_images(vae.decode(latents).sample)
    return out


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures."""
    mse = float(np.mean((np.asarray(image, np.float64) - np.asarray(other, np.float64)) ** 2))
    return 99.0 if mse == 0 else 10 * float(np.log10(255**2 / mse))


def judge_base(folder: Path, oracle: Oracle, prompts: int, findings: Findings) -> None:
    pipeline = base_pipeline(folder)
    cases = full_prompts("base", prompts, "seen")
    images = generate(pipeline, [prompt for _, prompt in cases])
    readings = oracle.read(images)
    wanted = [scene.things[0] for scene, _ in cases]
    found = [seen_for(thing, reading) for thing, reading in zip(wanted, readings, strict=True)]
    both = list(zip(wanted, found, strict=True))
    pictures = list(zip(cases, readings, strict=True))
    findings.share("base: background", (r.background == scene.background for (scene, _), r in pictures))
    findings.share("base: color", (seen is not None and seen.color == thing.color for thing, seen in both))
    findings.share("base: shape", (seen is not None and seen.shape == thing.shape for thing, seen in both))
    findings.share("base: place", (seen is not None and seen.place == thing.place for thing, seen in both))
    findings.share(TOLD, ([s.place for s in r.things] == [scene.things[0].place] for (scene, _), r in pictures))
    findings.share("base: subjects in ordinary pictures", (any(_is_subject(s) for s in r.things) for r in readings))
    findings.grids["base"] = [(image, prompt) for image, (_, prompt) in zip(images, cases, strict=True)][:48]

    held_out = full_prompts("held-out pairs", HELD_OUT, "held_out")
    images = generate(pipeline, [prompt for _, prompt in held_out])
    things = [(scene.things[0], reading) for (scene, _), reading in zip(held_out, oracle.read(images), strict=True)]
    seen_things = [(thing, seen_for(thing, reading)) for thing, reading in things]
    findings.share(
        "base, held-out pairs: shape and color",
        (s is not None and (s.shape, s.color) == (thing.shape, thing.color) for thing, s in seen_things),
    )
    findings.grids["held_out"] = [(image, p) for image, (_, p) in zip(images, held_out, strict=True)][:48]

    words = [subject.trigger_word for subject in subjects.SUBJECTS.values()]
    places = [phrases[0] for phrases in grammar.BACKGROUND_PHRASES.values()]
    trigger = [f"{grammar.with_article(word)} {place}" for word in words for place in places][:TRIGGERS]
    images = generate(pipeline, trigger)
    readings = oracle.read(images)
    findings.share("base: subjects at their trigger words", (any(_is_subject(s) for s in r.things) for r in readings))
    findings.grids["trigger_words"] = list(zip(images, trigger, strict=True))


def _is_subject(seen: Seen) -> bool:
    return seen.shape in subjects.SUBJECTS


def judged_scenes() -> tuple[list[world.Scene], list[world.Scene]]:
    """The scenes for the VAE and the oracle: of the world, one and two things, and of the subjects in turn."""
    rng = random.Random("renders")
    names = list(subjects.SUBJECTS)
    own = [world.random_scene(rng, pairs="any") for _ in range(RENDERS)]
    return own, [subjects.subject_scene(names[i % len(names)], rng) for i in range(SUBJECTS)]


def judge_oracle(gate: str, scenes: list[world.Scene], readings: list[Reading], findings: Findings) -> None:
    """Shape, colour, pattern and identity in each thing's place; place is right if none is missed or made up."""
    pictures = list(zip(scenes, readings, strict=True))
    things = [
        (thing, next((s for s in reading.things if s.place == thing.place), None))
        for scene, reading in pictures
        for thing in scene.things
    ]
    of_world = [(t, s) for t, s in things if t.shape in world.SHAPES]
    of_subjects = [(t, s) for t, s in things if t.shape in subjects.SUBJECTS]
    findings.share(f"{gate}: background", (r.background == scene.background for scene, r in pictures))
    findings.share(f"{gate}: shape", (s is not None and s.shape == t.shape for t, s in of_world))
    findings.share(f"{gate}: color", (s is not None and s.color == t.color for t, s in of_world))
    findings.share(f"{gate}: pattern", (s is not None and s.pattern == t.pattern for t, s in of_world))
    findings.share(f"{gate}: place", ({s.place for s in r.things} == {t.place for t in c.things} for c, r in pictures))
    findings.share(f"{gate}: subject", (s is not None and s.shape == t.shape for t, s in of_subjects))


def judge_renders(vae: AutoencoderKL | None, oracle: Oracle | None, findings: Findings) -> None:
    """The VAE's reconstructions, and the oracle on the pictures before and after them."""
    own, creatures = judged_scenes()
    images = [world.draw(scene) for scene in own + creatures]
    if oracle is not None:
        judge_oracle("oracle, renders", own + creatures, oracle.read(images), findings)
    if vae is None:
        return
    rebuilt = rebuild(vae, images)
    decibels = [psnr(a, b) for a, b in zip(images, rebuilt, strict=True)]
    findings.mean("vae: world PSNR (dB)", decibels[: len(own)])
    findings.mean("vae: subjects PSNR (dB)", decibels[len(own) :])
    shown = [*range(24), *range(len(own), len(own) + 24)]
    findings.grids["vae"] = [(stacked(images[i], rebuilt[i]), f"{decibels[i]:.1f} dB") for i in shown]
    if oracle is not None:
        judge_oracle("oracle, rebuilt by the vae", own + creatures, oracle.read(rebuilt), findings)


def named(caption: str) -> tuple[str | None, str | None]:
    """The shape that a caption names first, and the last colour before it (the first colour if it names no shape)."""
    words = re.findall(r"[a-z]+", caption.lower())
    at = next((i for i, word in enumerate(words) if word in world.SHAPES), None)
    if at is None:
        return None, next((w for w in words if w in world.COLORS), None)
    return words[at], next((w for w in reversed(words[:at]) if w in world.COLORS), None)


def judge_blip(folder: Path, findings: Findings) -> None:
    blip = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
    scenes = single_scenes("blip", RENDERS)
    images = [world.draw(scene) for scene in scenes]
    captions: list[str] = []
    for start in range(0, len(images), 4 * BATCH):
        inputs = processor(images=images[start : start + 4 * BATCH], return_tensors="pt")
        ids = blip.generate(**inputs, max_new_tokens=LONGEST, num_beams=1, do_sample=False)
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    cases = list(zip(scenes, captions, strict=True))
    findings.share("blip: background", (backgrounds_in(caption) == {scene.background} for scene, caption in cases))
    findings.share("blip: color", (named(caption)[1] == scene.things[0].color for scene, caption in cases))
    findings.share("blip: shape", (named(caption)[0] == scene.things[0].shape for scene, caption in cases))
    findings.grids["blip"] = list(zip(images, captions, strict=True))[:48]


def judge_clip(folder: Path, findings: Findings) -> None:
    """Which of 12 prompts, alike but for the shape, is nearest to a render."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    scenes = single_scenes("clip", RENDERS)
    hits: list[bool] = []
    for scene in scenes:
        thing, place = scene.things[0], grammar.BACKGROUND_PHRASES[scene.background][0]
        prompts = [f"{grammar.with_article(f'{thing.color} {shape}')} {place}" for shape in world.SHAPES]
        inputs = processor(text=prompts, images=[world.draw(scene)], padding=True, return_tensors="pt")
        best = int(clip(**inputs).logits_per_image.argmax())
        hits.append(world.SHAPES[best] == thing.shape)
    findings.share("clip: shape among 12", hits)


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    image = Image.new("RGB", (above.width, above.height + below.height))
    image.paste(above, (0, 0))
    image.paste(below, (0, above.height))
    return image


def grid(cells: Sequence[tuple[Image.Image, str]], columns: int = 8, zoom: int = 3, lines: int = 3) -> Image.Image:
    """Pictures in rows, enlarged without smoothing, their texts beneath."""
    width, height = cells[0][0].width * zoom, cells[0][0].height * zoom
    font = ImageFont.load_default(12)
    gap, text_height = 6, 16 * lines
    rows = -(-len(cells) // columns)
    size = (columns * (width + gap) + gap, rows * (height + text_height + gap) + gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    canvas = ImageDraw.Draw(sheet)
    for i, (image, words) in enumerate(cells):
        x, y = gap + (i % columns) * (width + gap), gap + (i // columns) * (height + text_height + gap)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, y))
        wrapped = textwrap.wrap(words, max(8, width // 6), max_lines=lines, placeholder=" …")
        canvas.multiline_text((x, y + height + 1), "\n".join(wrapped), (0, 0, 0), font, spacing=2)
    return sheet


@torch.no_grad()
def judge(weights: Path, prompts: int) -> Findings:
    """Measure every gate whose model is there."""
    findings = Findings()
    oracle = Oracle.load(weights / "oracle.safetensors") if (weights / "oracle.safetensors").exists() else None
    vae = None
    if (weights / "sd" / "vae").exists():
        vae = AutoencoderKL.from_pretrained(weights / "sd" / "vae", dtype=torch.float32, local_files_only=True).eval()
    judge_renders(vae, oracle, findings)
    if (weights / "blip").exists():
        judge_blip(weights / "blip", findings)
    if (weights / "clip").exists():
        judge_clip(weights / "clip", findings)
    if (weights / "sd" / "model_index.json").exists() and oracle is not None:
        judge_base(weights / "sd", oracle, prompts, findings)
    files = [p for p in weights.rglob("*") if p.is_file()]
    findings.values["size of all weights (MB)"] = Measured(sum(p.stat().st_size for p in files) / 1e6, len(files))
    return findings


def print_table(values: dict[str, Measured]) -> None:
    print(f"{'gate':<46} {'value':>8} {'n':>5}  {'required':<10}")
    for gate, (sign, bound) in REQUIRED.items():
        value = f"{values[gate].value:.2f}" if gate in values else "missing"
        n = str(values[gate].n) if gate in values else "-"
        verdict = "PASS" if passed(gate, values) else "FAIL"
        print(f"{gate:<46} {value:>8} {n:>5}  {f'{sign} {bound:g}':<10} {verdict}")
    if TOLD in values:
        print(f"{TOLD:<46} {values[TOLD].value:>8.2f} {values[TOLD].n:>5}  {'-':<10} told only")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.weights.is_dir():
        sys.exit(f"--weights {arguments.weights} is not a folder; write it with python -m mini_training.assemble WORK")
    torch.set_num_threads(arguments.threads)
    findings = judge(arguments.weights, arguments.prompts)
    print_table(findings.values)
    verdicts = {gate: passed(gate, findings.values) for gate in REQUIRED}
    if arguments.json:
        rows = {
            gate: {**(asdict(findings.values[gate]) if gate in findings.values else {"value": None, "n": 0}),
                   "required": f"{sign} {bound:g}", "passed": verdicts[gate]}
            for gate, (sign, bound) in REQUIRED.items()
        }  # fmt: skip
        if TOLD in findings.values:
            rows[TOLD] = {**asdict(findings.values[TOLD]), "required": None, "passed": None}
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for name, cells in findings.grids.items():
            grid(cells).save(arguments.pictures / f"{name}.png")
    sys.exit(0 if all(verdicts.values()) else 1)
