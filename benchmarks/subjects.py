"""How well does the demo's recipe teach each of the six subjects? The oracle's shares, arm "human".

    python benchmarks/subjects.py [SUBJECT ...] [--set train.steps=200] [--out runs/subjects]

`learnt`: pictures that show the subject, of 24 that ask for it, and how many of them the base shows; `background`: of all
pictures; `leak`: the subject in 16 pictures that do not ask for it; `kept`: those right with the LoRA / without it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from captune import demo, pipeline, recipe
from captune.mini import subjects
from captune.progress import Silent
from captune.runs import RunFolder


def judged(subject: str, out: Path, overrides: list[str]) -> str:
    photos = out / subject / "photos"
    demo.draw_photos(subject, photos)
    values = demo.demo_recipe(subject, photos).model_dump(mode="json", exclude_none=True)
    values["arm"] = [arm for arm in values["arm"] if arm["name"] == "human"]
    values["evaluate"]["metrics"] = [m for m in values["evaluate"]["metrics"] if m.startswith("oracle")]
    began = time.perf_counter()
    outcome = pipeline.run(recipe.from_values(values, overrides=overrides), RunFolder(out / subject), Silent())
    seconds = time.perf_counter() - began
    base = {k: v["mean"] for k, v in outcome.summary["base"].items()}
    human = {k: v["mean"] for k, v in outcome.summary["arms"]["human"].items()}
    return (
        f"{subject:10} learnt {human['oracle_subject']:.2f} (base {base['oracle_subject']:.2f})  "
        f"background {human['oracle_background']:.2f}  leak {human['oracle_leak']:.2f}  "
        f"kept {human['oracle_prompt']:.2f} / {base['oracle_prompt']:.2f}  {seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=list(subjects.SUBJECTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/subjects"))
    arguments = parser.parse_args()
    for subject in arguments.subjects:
        print(judged(subject, arguments.out, arguments.set), flush=True)


if __name__ == "__main__":
    main()
