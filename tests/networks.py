"""Small networks of every kind that the tests need; random weights, all of them non-zero."""

import torch
from diffusers import UNet2DModel


def small_unet(*, norm: str = "scale_shift", dtype: torch.dtype = torch.float32, size: int = 16) -> UNet2DModel:
    """ADM-style, two levels, attention on the deeper, learned variance; 0.6 M parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=6,
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
