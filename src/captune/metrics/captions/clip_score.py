"""clip_score: whether a caption fits its picture, by CLIP and without references; and with them.

Definition: CLIPScore is 2.5 * max(cos(picture, "A photo depicts " + caption), 0); RefCLIPScore is the harmonic mean of that
and of the caption's best cosine with a reference, negative ones counted as 0. The encoder reads 77 tokens; captions that
it cuts are told. The corpus values are the means.
Range: 0 to 2.5, in practice 0.5 to 0.9. Values of different encoders do not compare; the published ones are by ViT-B/32.
Not torchmetrics' CLIPScore, which is 100 * cos without the prefix. Source: Hessel et al. 2021.
"""

from __future__ import annotations

from captune.metrics import _encoder
from captune.metrics.captions import CaptionScores, Unavailable
from captune.metrics.captions._captions import Captions

PREFIX, WEIGHT = "A photo depicts ", 2.5
BATCH_SIZE = 32


class ClipScore:
    """CLIPScore and RefCLIPScore; Unavailable without pictures."""

    def score(self, captions: Captions) -> CaptionScores:
        if captions.images is None:
            raise Unavailable("CLIPScore needs the pictures: name their folder with --images")
        encoder = _encoder.load_clip(captions.encoder, captions.device, field="--encoder")
        prefixed = [PREFIX + text for text in captions.texts]
        references = [[PREFIX + text for text in group] for group in captions.reference_texts]
        of_text = encoder.embed_texts([*prefixed, *(text for group in references for text in group)], BATCH_SIZE)
        of_image = encoder.embed_images((captions.images[key] for key in captions.ids), BATCH_SIZE)
        plain, referenced = [], []
        for key, text, group in zip(captions.ids, prefixed, references, strict=True):
            value = WEIGHT * max(float(of_text[text] @ of_image[captions.images[key]]), 0.0)
            best = max(max(float(of_text[text] @ of_text[reference]) for reference in group), 0.0)
            plain.append(value)
            referenced.append(2 * value * best / (value + best) if value + best else 0.0)
        columns = {"CLIPScore": plain, "RefCLIPScore": referenced}
        cut = sum(encoder.count_tokens(text) > encoder.longest for text in prefixed)
        facts = {"clip_encoder": encoder.name, "captions_cut_by_clip": cut}
        return CaptionScores({name: sum(values) / len(values) for name, values in columns.items()}, columns, facts)
