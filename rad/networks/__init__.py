"""diffusers' networks with a timestep for every pixel, patched in place; parameters keep their names.

Example:
    unet = patch(UNet2DModel.from_pretrained(folder))
    output = unet(x, level.timesteps, index=level.index).sample   # timesteps (B,K), index (B,H,W) in [0,K)
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.networks.sd3_transformer import RegionAwareTransformer, patch_transformer
    from rad.networks.unet import EmbeddingKind, RegionAwareUNet, patch
    from rad.networks.unet_condition import RegionAwareConditionalUNet, patch_conditional

REGION_AWARE = "region_aware"
"""Entry of a network's config: it was only trained with a timestep per pixel. `save_base` writes it."""

SURROUNDINGS = "surroundings"
"""Entry of a network's config: its output is relative to the known pixels around, see `rad.networks.surroundings`."""

OWN_ENTRIES = frozenset({REGION_AWARE, SURROUNDINGS})
"""Entries that a network's config has beside the arguments of diffusers' class."""

__all__ = [
    "EmbeddingKind",
    "RegionAwareConditionalUNet",
    "RegionAwareTransformer",
    "RegionAwareUNet",
    "patch",
    "patch_conditional",
    "patch_transformer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "sd3_transformer": "RegionAwareTransformer patch_transformer",
        "unet": "EmbeddingKind RegionAwareUNet patch",
        "unet_condition": "RegionAwareConditionalUNet patch_conditional",
    },
)
