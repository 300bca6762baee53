"""Small networks of every kind for the tests, with random, non-zero weights."""

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel


def small_unet(
    *, norm: str = "scale_shift", dtype: torch.dtype = torch.float32, size: int = 16, outputs: int = 6
) -> UNet2DModel:
    """ADM-style, two levels, attention on the deeper level, learned variance with 6 `outputs`; 0.6 M parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=outputs,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=32,
            attn_norm_num_groups=32,
            resnet_time_scale_shift=norm,
        )
    return unet.to(dtype).eval()


def small_conditional(*, dtype: torch.dtype = torch.float32, size: int = 8, **changes: object) -> UNet2DConditionModel:
    """Stable Diffusion's type: latents of 4 channels, text of 16, cross-attention on the upper level."""
    fields = {
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**(fields | changes))
    return unet.to(dtype).eval()


def small_transformer(*, dtype: torch.dtype = torch.float32, size: int = 8, **changes: object) -> SD3Transformer2DModel:
    """Stable Diffusion 3.5's type: three blocks, the first with two attentions, pooled text of 24, text of 16."""
    fields = {
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 12,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SD3Transformer2DModel(**(fields | changes))
    return network.to(dtype).eval()
