"""PatchMatch (Barnes et al. 2009; inpainting as Wexler et al. 2007) by the package pypatchmatch, hole = non-zero.

pypatchmatch is no dependency of this project: install it in an environment of its own, see docs/results/photographs.md.
"""

import torch
from torch import Tensor


class PatchMatch:
    """Calls `patchmatch.patch_match.inpaint`.

    Args:
        patch_size: side of a patch in pixels; the package's default is 15.
    """

    calls = 0

    def __init__(self, *, patch_size: int = 7) -> None:
        from patchmatch import patch_match

        if not patch_match.patchmatch_available:
            raise ImportError("the library of pypatchmatch does not load on this machine")
        self.patch_size, self.library = patch_size, patch_match

    def __call__(self, image: Tensor, hole: Tensor, generator: torch.Generator) -> Tensor:
        """The filled image (1,3,H,W) in [0,1]; hole (1,1,H,W), 1 = fill."""
        pixels = (255 * image[0]).round().byte().permute(1, 2, 0).contiguous().numpy()
        self.library.set_random_seed(generator.initial_seed() % 2**32)
        filled = self.library.inpaint(pixels, (255 * hole[0, 0]).byte().numpy(), patch_size=self.patch_size)
        return torch.from_numpy(filled).permute(2, 0, 1)[None] / 255
