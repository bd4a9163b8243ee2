"""How quick are BLEU, ROUGE-L and CIDEr, tokenizer included, beside pycocoevalcap's own?

    python benchmarks/caption_metrics.py [--captions 5000] [--references 4] [--rounds 3]

Made-up captions in the manner of COCO's (a grammar with names, numbers and punctuation), both ways in turn within one
process; needs Java and pycocoevalcap (`pip install 'captune[caption-metrics]'`). Prints the ratio of each round and
how far the scores are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import statistics
import time

from captune.metrics import captions
from captune.metrics.captions import ptb

WORDS = {
    "who": "man woman boy girl child skier surfer baseball-player couple group person's dog people zebra giraffe cat",
    "does": "sitting riding holding standing looking walking playing eating cutting talking",
    "where": "on in near beside behind by under above",
    "what": "bench bus pizza kitchen surfboard street sign laptop umbrella T-shirt clock tower tennis racket",
    "how": "red small large wooden well-lit black&white old broken 2 three",
}
CHOICES = {kind: words.split() for kind, words in WORDS.items()}
ENDS = (
    "",
    "",
    "",
    " in the snow",
    " at 5 p.m.",
    " in New York",
    ", smiling",
    " (1990s)",
    " on Main St.",
    " beside its owner's cat",
)


def caption(rng: random.Random) -> str:
    who, does, where, what, how = (rng.choice(CHOICES[kind]) for kind in CHOICES)
    said = f"{rng.choice(['A', 'The', 'a'])} {rng.choice(CHOICES['how'])} {who} {does} {where} a {how} {what}"
    return said + rng.choice(ENDS) + rng.choice(["", ".", ".", " ."])


def ours(candidates: dict[str, str], references: dict[str, list[str]]) -> list[float]:
    ptb.forget()
    scored = captions.score(candidates, references, ("bleu", "rouge_l", "cider"))
    return [scored.corpus[name] for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr")]


def theirs(candidates: dict[str, str], references: dict[str, list[str]]) -> list[float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        truth = PTBTokenizer().tokenize({key: [{"caption": t} for t in texts] for key, texts in references.items()})
        found = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in candidates.items()})
        bleu, _ = Bleu(4).compute_score(truth, found, verbose=0)
        rouge, _ = Rouge().compute_score(truth, found)
        cider, _ = Cider().compute_score(truth, found)
    return [bleu[0], bleu[3], float(rouge), float(cider)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rng = random.Random("captions")
    candidates = {str(place): caption(rng) for place in range(arguments.captions)}
    references = {key: [caption(rng) for _ in range(arguments.references)] for key in candidates}
    ratios = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        own = ours(candidates, references)
        between = time.perf_counter()
        other = theirs(candidates, references)
        quick, slow = between - began, time.perf_counter() - between
        ratios.append(slow / quick)
        apart = max(abs(a - b) for a, b in zip(own, other, strict=True))
        print(
            f"captune {quick:.2f} s, pycocoevalcap {slow:.2f} s, ratio {ratios[-1]:.1f}, largest difference {apart:.1e}"
        )
    print(f"median ratio: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
