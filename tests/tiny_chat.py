"""Chat models of real classes with wild random weights, a few kilobytes each: LLaVA, and Florence-2."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %} ASSISTANT: {{ message['content'][0]['text'] }}</s>"
    "{% else %}<s>USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:"
    "{% endif %}"
)
TEXT_TEMPLATE = (  # takes text alone and puts the picture's place in front, as JoyCaption's does
    "{% for message in messages %}<s>USER: <image> {{ message['content'] | trim }}{% endfor %} ASSISTANT:"
)


def tokenizer(named: dict[str, str] | None = None) -> Any:
    """Letters as tokens; `named` special tokens are the tokenizer's attributes too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, " "]
    words = list(dict.fromkeys([*special, *letters]))
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        model_max_length=4096,
        **({"model_specific_special_tokens": named} if named else {}),
    )


def wild(model: Any, seed: int) -> None:
    """Weights so large that pictures give different words."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1 or name.endswith("class_embedding"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)


def write_llava(folder: Path, template: str | None = TEMPLATE) -> None:
    """A LLaVA that sees 28 pixels in four patches."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=32, **sizes)
    text = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=512, **sizes)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = 2, 3, 0
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=4, image_seq_length=4)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    wild(model, 3)
    model.save_pretrained(folder)
    size = {"shortest_edge": 28}
    pictures = CLIPImageProcessorPil(size=size, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        pictures,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


def write_florence(folder: Path) -> None:
    """A Florence-2 that sees 32 pixels in four patches and a mean."""
    from transformers import (
        BartConfig,
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    words = tokenizer({"image_token": "<image>"})
    width = (8, 16)
    vision = Florence2VisionConfig(
        depths=(1, 1),
        patch_size=(7, 3),
        patch_stride=(8, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dim=width,
        num_heads=(2, 2),
        num_groups=(2, 2),
        window_size=2,
        projection_dim=32,
    )
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1}
    text = BartConfig(
        vocab_size=len(words),
        max_position_embeddings=256,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
        **sizes,
    )
    model = Florence2ForConditionalGeneration(
        Florence2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=4)
    )
    model.generation_config.decoder_start_token_id = 3
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 3, 0
    model.generation_config.min_new_tokens = 6
    wild(model, 1)
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    pictures.image_seq_length = 5
    Florence2Processor(pictures, words).save_pretrained(folder)
