"""DDRM and DiffPIR of deepinv, on the same weights as ours.

deepinv is no dependency of this project: install it in an environment of its own, see docs/results/photographs.md. Its
denoisers take x0 + sigma e in [0,1], and its inpainting mask is 1 on known pixels. deepinv has no DDNM.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.others.network import Estimator, denoise, sigmas

if TYPE_CHECKING:
    from deepinv.physics import Inpainting


class Denoiser(nn.Module):
    """An estimator as deepinv's denoiser: forward(x in [0,1] plus noise, sigma) -> x0 in [0,1].

    Args:
        scale: factor on the noise level that the caller names.
    """

    def __init__(self, estimator: Estimator, scale: float = 1.0) -> None:
        super().__init__()
        self.estimator, self.scale = estimator, scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return denoise(self.estimator, x.float(), self.scale * float(sigma)).to(x.dtype)


class DDRM:
    """DDRM (Kawar et al. 2022, arXiv 2201.11793) with the paper's 20 evenly spaced timesteps, eta 0.85 and eta_b 1.

    deepinv 0.5.0 divides all added noise by sqrt(2): a level named sigma holds noise of sigma / sqrt(2). Levels are therefore
    given times sqrt(2), and the denoiser divides again, which restores the paper's process.
    """

    def __init__(self, estimator: Estimator, *, steps: int = 20) -> None:
        from deepinv.sampling import DDRM as Sampler

        count = len(estimator.alphas_cumprod)
        named = sigmas(estimator.alphas_cumprod)[:: count // steps].flip(0) * 2**0.5
        self.sampler = Sampler(Denoiser(estimator, 2**-0.5), sigmas=named.tolist(), eta=0.85, etab=1.0)
        self.calls = len(named)

    def __call__(self, image: Tensor, hole: Tensor, generator: torch.Generator) -> Tensor:
        """The filled image (1,3,H,W) in [0,1]; hole (1,1,H,W), 1 = fill."""
        return _sample(self.sampler, image, hole, generator, noise=0.0)


class DiffPIR:
    """DiffPIR (Zhu et al. 2023, arXiv 2305.08995) with its setting for inpainting: 20 calls, lambda 1, zeta 1, sigma_n 0.001.

    deepinv has the linear schedule of 1,000 steps built in. Raises ValueError for a model with another one.
    """

    def __init__(self, estimator: Estimator, *, steps: int = 20) -> None:
        from deepinv.optim.data_fidelity import L2
        from deepinv.sampling import DiffPIR as Sampler

        self.sampler = Sampler(Denoiser(estimator), L2(), sigma=0.001, max_iter=steps, zeta=1.0, lambda_=1.0)
        if not torch.allclose(self.sampler.sqrt_alphas_cumprod.double() ** 2, estimator.alphas_cumprod, rtol=1e-3):
            raise ValueError("DiffPIR of deepinv needs a model with the linear schedule, 0.0001 to 0.02 in 1,000 steps")
        self.calls = steps

    def __call__(self, image: Tensor, hole: Tensor, generator: torch.Generator) -> Tensor:
        """The filled image (1,3,H,W) in [0,1]; hole (1,1,H,W), 1 = fill."""
        return _sample(self.sampler, image, hole, generator, noise=0.001)


def _sample(sampler: nn.Module, image: Tensor, hole: Tensor, generator: torch.Generator, *, noise: float) -> Tensor:
    """deepinv draws from the global generator, so its state is set from `generator` and restored."""
    physics = _inpainting(hole.expand_as(image), noise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return sampler(image * (1 - hole), physics).detach()


def _inpainting(hole: Tensor, noise: float) -> "Inpainting":
    from deepinv.physics import GaussianNoise, Inpainting

    return Inpainting(img_size=hole.shape[1:], mask=1 - hole, noise_model=GaussianNoise(sigma=noise))
