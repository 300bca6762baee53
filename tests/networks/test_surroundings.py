"""Outputs relative to the known pixels around a hole: the formula, its limits, and that nothing of the hole has an effect."""

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import hybrid_loss, snr_weight
from rad.diffusion.processes import Uniform, region_aware
from rad.diffusion.schedules import linear_betas, log_cumulative
from rad.diffusion.step import noised
from rad.models.base import load_base, save_base
from rad.models.load import new_model
from rad.models.unet_model import UNetModel
from rad.networks.surroundings import LEAST_DEVIATION, surroundings, velocity
from rad.networks.unet import patch, use_surroundings
from tests.tiny_networks import small_unet

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def hole(height=32, width=40):
    region = torch.zeros(1, 1, height, width, dtype=torch.bool)
    region[..., 8:20, 10:30] = True
    return region


def test_flat_and_sloping_surroundings_continue_into_the_hole():
    inside = hole()
    flat = torch.full((1, 3, 32, 40), 0.3, dtype=DOUBLE)
    mean, deviation = surroundings(flat, ~inside)
    torch.testing.assert_close(mean, flat, rtol=0, atol=1e-12)
    torch.testing.assert_close(deviation, torch.full_like(deviation, LEAST_DEVIATION), rtol=0, atol=1e-6)
    slope = torch.linspace(-1, 1, 40, dtype=DOUBLE).expand(1, 3, 32, 40)
    mean, _ = surroundings(slope, ~inside)
    assert (mean - slope)[inside.expand_as(slope)].abs().max() < 0.15
    assert torch.equal(mean[:, :, 21:], slope[:, :, 21:]), "known pixels are their own mean"


def test_the_deviation_is_near_that_of_noise_around_the_hole():
    x = 0.2 * draw(4, 3, 64, 64)
    inside = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
    inside[..., 28:36, 28:36] = True
    _, deviation = surroundings(x, ~inside)
    assert 0.16 < deviation[inside].mean() < 0.24


def test_three_known_pixels_in_3x3_suffice_for_the_deviation():
    x, known = torch.linspace(-1, 1, 33, dtype=DOUBLE).expand(1, 3, 32, 33), torch.zeros(1, 1, 32, 33, dtype=torch.bool)
    known[..., 1::3] = True  # three of each 3x3, and equal
    inner = surroundings(x, known)[1][..., 4:-4, 4:-4]
    torch.testing.assert_close(inner, torch.full_like(inner, LEAST_DEVIATION), rtol=0, atol=1e-6)


def test_only_known_pixels_have_an_effect():
    x, inside = draw(2, 3, 32, 40), hole().expand(2, -1, -1, -1)
    other = torch.where(inside, torch.full_like(x, float("nan")), x)
    for one, two in zip(surroundings(x, ~inside), surroundings(other, ~inside), strict=True):
        assert torch.equal(one, two)
    changed = x.clone()
    changed[1] += 1
    assert torch.equal(surroundings(x, ~inside)[0][0], surroundings(changed, ~inside)[0][0]), "images are independent"


def test_without_known_pixels_the_output_is_v():
    x = draw(2, 3, 16, 16)
    mean, deviation = surroundings(x, torch.zeros(2, 1, 16, 16, dtype=torch.bool))
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(deviation, torch.ones_like(deviation))


@pytest.mark.parametrize("t", [0, 3, 400, 999])
def test_v_gives_the_posterior_of_a_normal_pixel(t):
    """x0 = m + a d^2 / D (x - a m) - s d / sqrt(D) F."""
    x, output, inside = draw(1, 3, 32, 40), draw(1, 3, 32, 40, seed=1), hole()
    a, s = (torch.tensor(value, dtype=DOUBLE).view(1, 1, 1, 1) for value in levels(t))
    v = velocity(output, x, ~inside, alpha=a, sigma=s)
    m, d = surroundings(x, ~inside)
    total = a**2 * d**2 + s**2
    expected = m + a * d**2 / total * (x - a * m) - s * d / total.sqrt() * output
    here = inside.expand_as(x)
    torch.testing.assert_close((a * x - s * v)[here], expected[here], rtol=0, atol=1e-12)


def levels(t):
    log_abar = log_cumulative(linear_betas())[t]
    return (log_abar / 2).exp().item(), (-log_abar.expm1()).sqrt().item()


def network():
    unet = patch(small_unet(dtype=DOUBLE, outputs=3))
    use_surroundings(unet, log_cumulative(linear_betas())[:-1])
    return unet


@pytest.mark.parametrize("t", [0.0, 250.5, 999.0])
def test_the_network_uses_the_levels_of_its_timesteps(t):
    plain, relative = patch(small_unet(dtype=DOUBLE, outputs=3)), network()
    x, inside = draw(2, 3, 16, 24), torch.zeros(2, 16, 24, dtype=torch.long)
    inside[:, 4:9, 5:15] = 1
    times = torch.tensor([[0.0, t], [0.0, t]], dtype=DOUBLE)
    output, v = plain(x, times, index=inside).sample, relative(x, times, index=inside).sample
    now = region_aware(Uniform(linear_betas())).noise(times[:, 1], NoiseRegions.binary(inside[:, None].double()))
    expected = velocity(output, x, inside[:, None] == 0, alpha=now.alpha_map(), sigma=now.sigma_map())
    here = (inside[:, None] == 1).expand_as(x)
    torch.testing.assert_close(v[here], expected[here], rtol=0, atol=2e-5)
    assert torch.equal(v[~here], output[~here])
    if t > 0:
        times_map = times.gather(1, inside.flatten(1)).view(inside.shape)
        torch.testing.assert_close(relative(x, times_map).sample, v, rtol=0, atol=1e-12)
    torch.testing.assert_close(relative(x, 999).sample, plain(x, 999).sample, rtol=0, atol=1e-12)


def test_a_folder_keeps_the_entry_and_stock_diffusers_reads_it(tmp_path):
    save_base(tmp_path, network().float(), betas=linear_betas(), prediction_type="v_prediction", half=False)
    model = UNetModel(load_base(tmp_path))
    assert model.unet.config["surroundings"]
    assert len(model.unet.log_cumulative) == 1000
    stock = DDPMPipeline.from_pretrained(tmp_path).unet
    assert isinstance(stock, UNet2DModel)
    x = draw(1, 3, 16, 16).float()
    torch.testing.assert_close(model.unet(x, 500).sample, stock(x, 500).sample, rtol=0, atol=1e-5)


def test_other_models_are_refused(tmp_path):
    save_base(tmp_path, small_unet(), betas=linear_betas(), half=False)
    with pytest.raises(ValueError, match="pixel models with 'v_prediction'"):
        UNetModel(load_base(tmp_path)).use_surroundings()


@pytest.mark.parametrize("d", [0.05, 0.6])
def test_the_loss_weighs_each_pixel_by_its_surroundings(d):
    """SNR + 1 / (d^2 + 0.07^2) times the squared error of x0."""
    x0, eps, inside = draw(1, 3, 16, 16), draw(1, 3, 16, 16, seed=1), torch.zeros(1, 1, 16, 16, dtype=DOUBLE)
    inside[..., 4:12, 4:12] = 1
    now = region_aware(Uniform(linear_betas())).noise(torch.tensor([600]), NoiseRegions.binary(inside))
    a, s = levels(600)
    output = draw(1, 3, 16, 16, seed=2)
    options = {"x0": x0, "x": noised(x0, now, noise=eps), "eps": eps, "now": now, "previous": now}
    loss = hybrid_loss(
        output, **options, loss_region="noisy", prediction="v_prediction", timestep_weight="surroundings",
        deviation=torch.full_like(inside, d),
    )  # fmt: skip
    error = (s * (output - (a * eps - s * x0))).square() * (a**2 / s**2 + 1 / (d**2 + 0.07**2))
    torch.testing.assert_close(loss.total, error[..., 4:12, 4:12].mean()[None], rtol=1e-9, atol=0)
    assert (snr_weight("edm", now, "v_prediction")[:, 0] == 0).all(), "clean pixels have no weight"


def test_a_new_model_takes_it():
    fields = {"block_out_channels": [32], "down_block_types": ["ResnetDownsampleBlock2D"], "out_channels": 3}
    fields |= {"up_block_types": ["ResnetUpsampleBlock2D"], "layers_per_block": 1}
    model = new_model(fields, prediction="v_prediction", image_size=16)
    model.use_surroundings()
    x = draw(1, 3, 16, 16).float()
    index = torch.zeros(1, 16, 16, dtype=torch.long)
    index[:, 4:8, 4:8] = 1
    times = torch.tensor([[0.0, 999.0]])
    v = model.region_aware_network()(x, times, index=index).sample  # F is zero: x0 is the fill
    mean, _ = surroundings(x, index[:, None] == 0)
    assert (levels(999)[0] * x - levels(999)[1] * v - mean)[..., 4:8, 4:8].abs().max() < 0.03  # a x is not quite 0
