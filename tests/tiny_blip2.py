"""Miniatures of BLIP-2 in its real classes, with random weights: OPT or T5 behind a Q-Former of 4 queries."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

QUERIES = 4
WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "beach", "in", "snow", "photo", "of", "small", "large"]


def write_tiny_blip2(folder: Path, language: str = "opt") -> None:
    """Save a BLIP-2 whose weights are wild enough that pictures give different logits."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessorPil,
    )

    tokenizer = opt_tokenizer() if language == "opt" else t5_tokenizer()
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, QUERIES)
    image = tokenizer.convert_tokens_to_ids("<image>")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=16, patch_size=8, num_attention_heads=2, **sizes).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=8, num_attention_heads=2, encoder_hidden_size=32, cross_attention_frequency=2, **sizes
        ).to_dict(),
        text_config=text_config(language, len(tokenizer)).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=image,
    )
    model = Blip2ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    if language == "t5":  # it divides by the root of its width before the words' embeddings judge
        torch.nn.init.normal_(model.language_model.shared.weight, std=1.5, generator=generator)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def text_config(language: str, vocabulary: int) -> Any:
    from transformers import OPTConfig, T5Config

    if language == "opt":
        return OPTConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
            max_position_embeddings=96,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        )
    return T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def opt_tokenizer() -> Any:
    """OPT's kind: byte-level BPE (here with no merges: a token a byte), </s> as start and end, a start added by itself."""
    from transformers import GPT2Tokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = GPT2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
    )
    return tokenizer


def t5_tokenizer() -> Any:
    """T5's kind: pieces with a mark for a word's beginning, </s> added at the end."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *string.ascii_lowercase, ",", "."]
    pieces = list(dict.fromkeys(pieces))
    return T5Tokenizer(
        vocab=[(piece, -float(i > 3 and len(piece) == 1) * 5) for i, piece in enumerate(pieces)], extra_ids=0
    )
