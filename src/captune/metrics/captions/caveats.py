"""What a reader of caption scores must know, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from captune.metrics.captions._captions import Captions

LENGTH_RATIOS = (0.6, 1.6)  # captions that are outside are of another style than their references
LOWEST_CIDER = 0.05
FEW_CAPTIONS = 50


def length_ratio(captions: Captions) -> float:
    """Words of all candidates over words of their references' mean lengths; 0 where the references have none."""
    own, references = captions.lengths
    theirs = sum(float(group.mean()) for group in references)
    return float(own.sum()) / theirs if theirs else 0.0


def warnings_about(captions: Captions, corpus: Mapping[str, float], tokenizer: str, left_out: int = 0) -> list[str]:
    """Sentences about what makes these scores mean less than they seem to."""
    told = []
    if left_out:
        told.append(f"{left_out} sets of references have no candidate and were left out, of the IDF too")
    told += _empty(captions)
    told += _style(captions, corpus)
    count, fewest = len(captions.ids), min(len(group) for group in captions.references)
    if count == 1 and "CIDEr" in corpus:
        told.append("CIDEr of a single caption is always 0: it weighs words by the other captions' references")
    elif count < FEW_CAPTIONS and "CIDEr" in corpus:
        told.append(f"CIDEr over {count} captions is noise in part: its word weights come from {count} reference sets")
    if fewest == 1:
        told.append(
            "some captions have one reference: BLEU and ROUGE-L rise with the number of references, so these scores "
            "do not compare with those of five"
        )
    if tokenizer == "none":
        told.append(
            "the texts were scored as they are (tokenizer none): case and punctuation count as differences, unless they "
            "were tokenized before"
        )
    return told


def _empty(captions: Captions) -> list[str]:
    told = []
    empty = [key for key, text in zip(captions.ids, captions.candidates, strict=True) if not text.strip()]
    if empty:
        told.append(f"{len(empty)} of {len(captions.ids)} captions have no words, such as {empty[0]!r}; they score 0")
    bare = sum(not text.strip() for group in captions.references for text in group)
    if bare:
        told.append(f"{bare} references have no words")
    return told


def _style(captions: Captions, corpus: Mapping[str, float]) -> list[str]:
    ratio = length_ratio(captions)
    shortest, longest = LENGTH_RATIOS
    if ratio and not shortest <= ratio <= longest:
        return [
            f"the captions have {ratio:.2f} times as many words as their references: they are written in another style, "
            "and BLEU, ROUGE-L, METEOR and CIDEr then judge the style and not whether a caption is right"
        ]
    if len(captions.ids) > 1 and corpus.get("CIDEr", 1.0) < LOWEST_CIDER:
        return [
            f"CIDEr is {corpus['CIDEr']:.3f}, next to none of 10: the captions share almost no telling words with their "
            "references, so they are of another style or of other pictures; the other scores say as little"
        ]
    return []
