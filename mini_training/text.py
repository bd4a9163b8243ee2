"""Captions for the rendered scenes, and the two tokenizers trained on them.

python -m mini_training.text WORK
"""

from __future__ import annotations

import argparse
import json
import random
import string
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, CLIPTokenizerFast

from captune.mini import grammar, world
from mini_training import data
from mini_training.models import CONTEXT

WEIGHTS = {"short": 0.45, "long": 0.25, "tags": 0.12, "instruction": 0.18}
NAMED = 0.05  # share of captions that call the thing by an invented word, so that unknown words stay harmless


def invented_word(rng: random.Random) -> str:
    syllables = ["".join((rng.choice("bcdfghjklmnprstvwz"), rng.choice("aeiou"))) for _ in range(rng.choice((2, 3)))]
    return "".join(syllables) + rng.choice(("", "", "n", "t", "k", "rt", "st"))


def caption(scene: world.Scene, rng: random.Random) -> tuple[str, str]:
    """A caption of a random style, and the style."""
    style = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    name = invented_word(rng) if rng.random() < NAMED else None
    return grammar.describe(scene, style, rng, name=name), style


def byte_symbols() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def train_bpe(captions: list[str], folder: Path, size: int = 1400) -> None:
    """CLIP's byte-level BPE with all 256 bytes, alone and at a word's end, so that any trigger word can be spelt."""
    symbols = byte_symbols()
    seed = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    seed.normalizer = normalizers.Lowercase()
    seed.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=symbols, end_of_word_suffix="</w>", show_progress=False, min_frequency=20
    )
    seed.train_from_iterator(captions, trainer)
    model = json.loads(seed.to_str())["model"]
    words = list(symbols) + [s + "</w>" for s in symbols]
    words += [w for w in model["vocab"] if w not in set(words)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    tokenizer = CLIPTokenizerFast(vocab={w: i for i, w in enumerate(words)}, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)


def train_wordpiece(captions: list[str], folder: Path, size: int = 900) -> None:
    """BERT's WordPiece with single letters, digits and marks as pieces; [DEC] is registered as a special token."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    seed = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    seed.normalizer = normalizers.BertNormalizer(lowercase=True)
    seed.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False, min_frequency=20
    )
    seed.train_from_iterator(captions, trainer)
    words = list(json.loads(seed.to_str())["model"]["vocab"])
    words += [f"##{c}" for c in letters if f"##{c}" not in set(words)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, do_lower_case=True, model_max_length=64)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[DEC]", "[ENC]"]})
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink()


def tokenize(work: Path, split: str, per_picture: int, seed: int) -> None:
    """Write captions as ids: WORK/{split}.clip.npy (pictures, per_picture, 48) and {split}.blip.npy, styles beside."""
    _, scenes = data.load(work, split)
    rng = random.Random(seed)
    pairs = [caption(s, rng) for s in scenes for _ in range(per_picture)]
    texts = [text for text, _ in pairs]
    styles = np.array([grammar.STYLES.index(style) for _, style in pairs], np.int8).reshape(len(scenes), per_picture)
    np.save(work / f"{split}.styles.npy", styles)
    for kind, tokenizer in (("clip", clip_tokenizer(work)), ("blip", blip_tokenizer(work))):
        ids = []
        for start in range(0, len(texts), 20_000):
            chunk = texts[start : start + 20_000]
            out = tokenizer(chunk, padding="max_length", truncation=True, max_length=CONTEXT)
            ids.append(np.array(out["input_ids"], np.int16))
        np.save(work / f"{split}.{kind}.npy", np.concatenate(ids).reshape(len(scenes), per_picture, CONTEXT))
    (work / f"{split}.captions.json").write_text(json.dumps(texts[: 200 * per_picture], indent=0))


def clip_tokenizer(work: Path) -> CLIPTokenizerFast:
    return CLIPTokenizerFast.from_pretrained(work / "clip_tokenizer")


def blip_tokenizer(work: Path) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(work / "blip_tokenizer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    if not (arguments.work / "clip_tokenizer").exists():
        _, scenes = data.load(arguments.work, "train")
        rng = random.Random(1)
        captions = [caption(s, rng)[0] for s in scenes[:30_000]]
        train_bpe(captions, arguments.work / "clip_tokenizer")
        train_wordpiece(captions, arguments.work / "blip_tokenizer")
    tokenize(arguments.work, "train", 5, seed=2)
    tokenize(arguments.work, "val", 4, seed=3)
