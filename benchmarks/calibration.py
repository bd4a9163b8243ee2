"""Are the study's verdicts calibrated? On simulated scores whose truth is known, and on real trainings of the mini world.

    python benchmarks/calibration.py [simulated] [trained] [--studies 1000] [--out runs/calibration]

Both parts if none is named; the simulated one takes two minutes, the trained one (60 LoRAs) an hour on two cores.
The parts are calibration_simulated.py and calibration_trained.py beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="simulated, trained")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    arguments = parser.parse_args()
    parts = arguments.parts or ["simulated", "trained"]
    options = {"simulated": ["--studies", str(arguments.studies)], "trained": ["--out", str(arguments.out)]}
    if unknown := set(parts) - set(options):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(options)}")
    for part in parts:
        print(f"\n== {part} ==", flush=True)
        code = subprocess.run([sys.executable, HERE / f"calibration_{part}.py", *options[part]], check=False).returncode
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()
