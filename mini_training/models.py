"""The configurations of the miniature models, all in the standard classes."""

from __future__ import annotations

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

LATENT_CHANNELS = 6
CONTEXT = 48


def vae() -> AutoencoderKL:
    """4x smaller, 6 channels: a 64 px picture becomes (6, 16, 16). With 8x and 12 channels it learnt far more slowly."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def clip(vocabulary: int, bos: int, eos: int) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        projection_dim=128,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        hidden_act="gelu",
        projection_dim=128,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def unet() -> UNet2DConditionModel:
    """A thin first level at 16 x 16 costs little; attention and most channels are at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 96, 160),
        layers_per_block=1,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=(1, 3, 5),  # diffusers reads this as the number of heads
        norm_num_groups=16,
        use_linear_projection=True,
        cross_attention_dim=128,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def blip(vocabulary: int, dec: int, sep: int) -> BlipForConditionalGeneration:
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        encoder_hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=dec,
        eos_token_id=sep,
        pad_token_id=0,
        sep_token_id=sep,
    )
    vision = BlipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        initializer_range=0.02,  # the class's own default, 1e-10, leaves the tower almost unable to learn
    )
    return BlipForConditionalGeneration(
        BlipConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128, image_text_hidden_size=128
        )
    )
