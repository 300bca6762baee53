"""RAD in one sitting: a training step and a sampling loop (Kim, Suh, Lee, CVPR 2025, arXiv 2412.09191).

    python examples/minimal_rad.py --train_steps 100 --sample_steps 20 --output filled.png

trains a small network on three photographs inside scikit-image, fills holes in them, and writes rows of
original | masked | filled. Expect the machinery, not quality: the paper fine-tunes a pretrained ADM for 300,000 steps.

    paper                                                here
    m in [0,1], 1 = fill                                 hole (B,1,H,W)
    abar_t, per pixel                                    NoiseLevel.alpha ** 2
    1 - abar_t, per pixel                                NoiseLevel.sigma ** 2
    T1 steps, then T2 = T1 steps                         process.sampled_steps, process.steps = 2 T1
"""

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import UNet2DModel
from PIL import Image
from skimage import data
from torch import Tensor

from rad.diffusion import NoiseRegions, RegionAware, UNetDenoiser, hybrid_loss, linear_betas, noised, reverse_step
from rad.images import to_tensor, to_uint8
from rad.masks import Perlin
from rad.networks import RegionAwareUNet, patch
from rad.rng import generator

SIZE = 32


def make_process() -> RegionAware:
    """The forward process: every pixel has its own schedule, given by its mask value m.

    With DDPM's A_t = prod (1 - beta_s), nu = 1 - A_(T1-1) and G_t = log A_t / log(1 - nu):

        phase 1, t <  T1:  abar_t = (1 - nu m)^G_t                                 the hole is noised, known pixels wait
        phase 2, t >= T1:  abar_t = (1 - nu m) ((1 - nu) / (1 - nu m))^G_(t-T1)    known pixels follow, the hole waits

    At m = 1, phase 1 is DDPM; at m = 0 it does nothing. Phase 2 exists for training alone.
    """
    return RegionAware(linear_betas(1000, first=1e-4, last=0.02))


def make_network() -> RegionAwareUNet:
    """A noise predictor with the spatial noise embedding: `patch` makes a stock UNet read a timestep for every pixel.

    The paper embeds the map of timesteps, and each residual block projects it: W resize(silu(embedding)) + b. `patch` embeds
    the K distinct timesteps of an image and mixes the K results, which is equal, because resize and W are linear.
    """
    unet = UNet2DModel(
        sample_size=SIZE,
        out_channels=6,  # 3 for the noise, 3 for the learned variance
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    return patch(unet)


def training_loss(
    network: torch.nn.Module, process: RegionAware, x0: Tensor, hole: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """L = |eps - eps_theta(x_t, t)|^2 + 0.001 L_vlb for each image, (B,).

    Args:
        x0: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; t: (B,) int64 in [0, 2 T1); eps: (B,3,H,W) standard normal.
    """
    regions = NoiseRegions.from_mask(hole)
    now, previous = process.noise(t, regions), process.noise(t - 1, regions)
    x = noised(x0, now, noise=eps)  # x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    output = network(x, now.timesteps.to(x.dtype), index=now.index).sample
    # L_vlb, KL(q(x_(t-1) | x_t, x_0) || p_theta), trains the variance alone. It is 0 for pixels that wait.
    return hybrid_loss(output, x0=x0, x=x, eps=eps, now=now, previous=previous, vlb_weight=1e-3).total


def sample(
    network: torch.nn.Module, process: RegionAware, image: Tensor, hole: Tensor, steps: int, randn: Callable[[], Tensor]
) -> Tensor:
    """Fill the hole: the reverse of phase 1, in DDPM steps between `steps` evenly spaced timesteps T1-1 .. 0.

    Args:
        image: (B,3,H,W) in [-1,1]; hole: (B,1,H,W) in [0,1]; randn: a new standard normal (B,3,H,W) at each call.

    Returns:
        (B,3,H,W) in [-1,1], equal to `image` where the hole is 0.
    """
    denoiser, regions = UNetDenoiser(network), NoiseRegions.from_mask(hole)
    timesteps = [*torch.linspace(process.sampled_steps - 1, 0, steps).round().long(), torch.tensor(-1)]  # -1: clean
    levels = [process.noise(t.to(image.device).expand(len(image)), regions) for t in timesteps]
    x = noised(torch.where(hole == 1, 0.0, image), levels[0], noise=randn())  # noise in the hole, the image around it
    for now, nxt in pairwise(levels):
        # x0 = (x_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t), clamped to [-1,1], and the learned variance.
        estimate = denoiser.denoise(x, now)
        # x_u ~ q(x_u | x_t, x0) with abar = abar_t, abar' = abar_u, a = abar / abar', b = 1 - a:
        #   mean = sqrt(abar') b / (1 - abar) x0 + sqrt(a) (1 - abar') / (1 - abar) x_t
        # and a variance between b (1 - abar') / (1 - abar) and b. Where b = 0 (known pixels) x_u is x_t, bit for bit.
        x = reverse_step(x, estimate, now, nxt, eta=1.0, noise=randn() if nxt is not levels[-1] else None)
    return torch.where(hole == 0, image, x)


def photographs() -> Tensor:
    """(3,3,SIZE,SIZE) in [-1,1]."""
    images = [
        Image.fromarray(pixels).resize((SIZE, SIZE)) for pixels in (data.astronaut(), data.chelsea(), data.coffee())
    ]
    return torch.stack([2 * to_tensor(image) - 1 for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train RAD for a few steps, fill holes, write an image.")
    parser.add_argument("--train_steps", type=int, default=100)
    parser.add_argument("--sample_steps", type=int, default=20)
    parser.add_argument("--output", default="filled.png")
    options = parser.parse_args()

    torch.manual_seed(0)  # for the initial weights alone, which diffusers draws from the global generator
    process, network, masks, images, random = make_process(), make_network(), Perlin(), photographs(), generator(0)
    randn = lambda: torch.randn(images.shape, generator=random)  # noqa: E731
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(options.train_steps):
        hole = masks([generator(0, step, number) for number in range(len(images))], SIZE, SIZE)  # a new mask each time
        t = torch.randint(process.steps, (len(images),), generator=random)  # both phases
        loss = training_loss(network, process, images, hole, t, randn()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    hole = torch.zeros(len(images), 1, SIZE, SIZE)
    hole[:, :, 8:24, 8:24] = 1
    with torch.no_grad():
        filled = sample(network.eval(), process, images, hole, options.sample_steps, randn)
    rows = torch.cat([images, torch.where(hole == 1, 0.0, images), filled], 3)
    to_uint8((torch.cat(list(rows), 1) + 1) / 2).save(options.output)
    print(options.output)


if __name__ == "__main__":
    main()
