"""VIPaint: Image Inpainting with Pre-Trained Diffusion Models via Variational Inference (Agarwal et al. 2024, arXiv 2411.18929).

Adam fits a Gaussian posterior q of K noise levels h_1 (noisiest) to h_K to each image, on a bound of the evidence:

    z_1 = a_1 mu_1 + tau_1 n,    z_i = w_i f_i + (1 - w_i) a_i mu_i + tau_i n,    w_i = sigmoid(gamma_i)
    loss = sum_(t > h_1) KL(q(z_t-1 | z_t) || p(z_t-1 | z_t)) + sum_(i > 1) KL(q(z_i | z_i-1) || N(f_i, v_i)) - log p(y | z_K)

f_i, v_i are mean and variance of the reverse step h_i-1 -> h_i, and p(y | z_K) = N(known y; known x0(z_K), sigma_y^2). The chain
starts from a draw of z_K. DPS follows each reverse step: x_u <- x_u - zeta grad_x_t || known (y - x0) ||. Space "pixels"
compares y with the decoded x0. Then -log p is the mean over pixels times d, the number of values in x.
"""

from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseRegions
from rad.diffusion.processes import Process, TimeOrigin
from rad.diffusion.step import Denoised, posterior_mean, reverse_step, step_levels
from rad.methods.guidance import Space, data_shift, norm, observation_residual, squared_misfit
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State
from rad.sampling.task import Task


@dataclass(frozen=True)
class VIPaint(SamplingMethod):
    """Defaults are VIPaint-2; VIPaint-4 has levels=4. The sampler's steps are those below h_K.

    Levels h are found by a / s on any process, and are even in time. Images are fitted with their own draws, independently of
    the batch unless `share` is true.

    Differences from the official code, which compares decoded pixels by mean L1 distance and LPIPS: the likelihood is Gaussian in
    either space. Its sigma_y is inferred, and its weight does not depend on the decoder. The KL is exact, the level above is
    predicted from x0, and the mean of z_1 is a_1 mu_1. Each iteration draws one level t > h_1 and weights it by their
    number. There are 250 steps below h_K (official: about 400), which add their noise.
    """

    paper = "Agarwal et al. 2024, arXiv 2411.18929"
    preset_steps = 250
    needs_grad = True

    levels: int = setting(2, "K: 2 for VIPaint-2, 4 for VIPaint-4", low=1)
    highest: float = setting(0.2, "a / s of h_1, below `lowest`; the paper's window is 0.2 to 0.5", low=0)
    lowest: float = setting(0.5, "a / s of h_K, where the steps start; at most as many steps as levels below it", low=0)
    iterations: int = setting(50, "iterations of Adam, one draw each; official 50, of five", low=0)
    rate: float = setting(0.1, "Adam's first learning rate for mu, falling to 0, images in [-1,1]; official 0.1", low=0)
    rate_shape: float = setting(0.05, "Adam's first rate for log tau^2 and gamma; official 0.001, 0.01", low=0)
    start: float = setting(0.1, "noise on the first mu, images in [-1,1]; official 0.1 LSUN, 0.8 ImageNet", low=0)
    gamma: float = setting(5.0, "the first gamma, w = 0.993; official ImageNet configuration")
    step_eta: float = setting(
        1.0, "eta of f_i, v_i, 1 is DDPM; the official 0.2 is sqrt(0.2) = 0.45 here", low=1e-3, high=1
    )
    sigma_y: float = setting(0.5, "deviation of known pixels given z_K, images in [-1,1]; inferred", low=1e-4)
    zeta: float = setting(
        0.5, "step on the gradient of the norm below h_K, DPS's at 256x256; less for smaller images", low=0
    )
    space: Space = setting("latent", "where to compare known values: latent, or pixels, through the decoder")
    share: bool = setting(False, "images of a batch with equal known pixels share the first one's fit")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.highest >= self.lowest:
            raise ValueError(f"highest is {self.highest:g}; allowed are values below lowest, {self.lowest:g}")

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        process = copy(base_process)
        process.sampled_steps = _time_of(process, self.lowest) + 1
        return process

    def cost(self, timesteps: list[float]) -> Cost:
        fit_and_steps = self.iterations * (self.levels + 1) + len(timesteps) - 1
        return Cost(fit_and_steps + self.levels - 1, fit_and_steps)

    def on_start(self, state: State) -> Tensor:
        low, K, first = state.timestep, self.levels, torch.arange(len(state.x), device=state.x.device)
        top = max(_time_of(state.process, self.highest), low + K - 1) if K > 1 else low
        if low > _time_of(state.process, self.lowest) or top > state.process.steps - 2:
            raise ValueError(
                f"vipaint: timesteps {top} to {low} must end at a / s = {self.lowest:g}: use the method's process"
            )
        if self.share:
            parts = (state.task.known, state.task.hole, state.task.image, state.task.image_hole)
            rows = torch.cat([part.flatten(1) for part in parts], 1)
            first = (rows[:, None] == rows).all(2).int().argmax(1)
        first, copies = first.unique(return_inverse=True)
        task = _rows(state.task, first)
        times = [top - round((top - low) * i / max(1, K - 1)) for i in range(K)]
        fitted = self.fit(replace(state, task=task, randn=lambda: state.randn()[first]), times)
        return self.sample(state, times, fitted[copies])[0]

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x = x_next - data_shift(state, self.zeta * norm(observation_residual(state.task, denoised.x0, self.space)))
        return torch.lerp(state.task.known, x, state.task.hole) if state.next_timestep == CLEAN else x

    def fit(self, state: State, times: list[float]) -> Tensor:
        """(B,3,K,C,H,W): mu, log tau^2 and gamma of each level."""
        mu = torch.stack([state.task.known + self.start * state.randn() for _ in times], 1)
        pairs = [(state.level(t), state.level(u)) for t, u in pairwise(times)]
        variances = [
            state.level(times[0]).sigma.square(),
            *(0.49 * self.step_eta**2 * step_levels(*pair).posterior for pair in pairs),
        ]
        log_variance = torch.cat(variances, 1).log().to(mu)[:, :, None, None, None].expand_as(mu).clone()
        parameters, above = [mu, log_variance, torch.full_like(mu, self.gamma)], state.process.steps - 1 - times[0]
        rates = (self.rate, self.rate_shape, self.rate_shape)
        adam = torch.optim.Adam([{"params": [parameter]} for parameter in parameters], betas=(0.9, 0.99))
        for number in range(self.iterations):
            with torch.enable_grad():
                q = torch.stack(parameters, 1).requires_grad_()
                t = times[0] + 1 + int(above * (0.6180339887 * number % 1))  # the golden ratio: evenly over the levels
                gradient = state.denoiser.gradient(above * self.divergence_above(state, times[0], t, q), q)
                z, loss = self.sample(state, times, q)
                x0 = state.denoiser.denoise(z, state.level(times[-1])).x0
                misfit = squared_misfit(state.task, x0, self.space) / (2 * self.sigma_y**2)
                gradient = gradient + state.denoiser.gradient(loss + misfit, q, passes=self.levels)
            for group, rate, parameter, part in zip(
                adam.param_groups, rates, parameters, gradient.unbind(1), strict=True
            ):
                group["lr"], parameter.grad = rate * (1 - number / self.iterations), part
            adam.step()
        return torch.stack(parameters, 1)

    def sample(self, state: State, times: list[float], q: Tensor) -> tuple[Tensor, Tensor]:
        """z_K (B,C,H,W) drawn from q, and the sum (B,) of the KL terms of the levels i > 1."""
        mu, log_variance, gamma = q.unbind(1)
        z = state.level(times[0]).alpha_map(mu) * mu[:, 0] + (log_variance[:, 0] / 2).exp() * state.randn()
        divergence = z.new_zeros(len(z))
        for i, (t, u) in enumerate(pairwise(times), 1):
            now, nxt, w = state.level(t), state.level(u), gamma[:, i].sigmoid()
            x0 = Denoised(state.denoiser.denoise(z, now).x0)
            f = reverse_step(z, x0, now, nxt, eta=self.step_eta, noise=torch.zeros_like(z))
            mean = w * f + (1 - w) * nxt.alpha_map(mu) * mu[:, i]
            variance = self.step_eta**2 * _on(mu, step_levels(now, nxt).posterior)
            divergence = divergence + kl(mean, log_variance[:, i].exp(), f, variance)
            z = mean + (log_variance[:, i] / 2).exp() * state.randn()
        return z, divergence

    def divergence_above(self, state: State, top: float, t: float, q: Tensor) -> Tensor:
        """(B,) KL of the reverse step t -> t - 1 from q to p, given mu_1 and tau_1 at the level `top` < t."""
        mu, variance = q[:, 0, 0], q[:, 1, 0].exp()
        h, now, nxt = state.level(top), state.level(t), state.level(t - 1)
        ratio_t, ratio_u = now.alpha / h.alpha, nxt.alpha / h.alpha
        v_t = _on(mu, ratio_t.square()) * variance + _on(mu, step_levels(now, h).b)
        v_u = _on(mu, ratio_u.square()) * variance + _on(mu, step_levels(nxt, h).b)
        noise = v_t.sqrt() * state.randn()
        z = now.alpha_map(mu) * mu + noise
        mean = nxt.alpha_map(mu) * mu + _on(mu, ratio_t / ratio_u) * v_u / v_t * noise
        p_mean, levels = posterior_mean(z, state.denoiser.denoise(z, now).x0, now, nxt), step_levels(now, nxt)
        return kl(mean, _on(mu, levels.b) * v_u / v_t, p_mean, _on(mu, levels.posterior))


def kl(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """(B,) KL( N(mean, variance) || N(other) ) of independent pixels, in nats."""
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - other_mean).square() / other_variance).flatten(1).sum(1)


def _rows(task: Task, rows: Tensor) -> Task:
    known, hole = task.known[rows], task.hole[rows]
    regions = NoiseRegions(task.regions.values[rows], task.regions.index[rows])
    return Task(known, hole, regions, task.autoencoder, task.image[rows], task.image_hole[rows])


def _on(image: Tensor, level: Tensor) -> Tensor:
    return level[:, 0, None, None, None].to(image)  # one level for the whole image


def _time_of(process: Process, ratio: float) -> int:
    """The noisiest timestep with a / s of at least `ratio`."""
    noise = process.noise(torch.arange(process.steps, device="cpu"), None)
    return max(0, int((noise.alpha >= ratio * noise.sigma).sum()) - 1)
