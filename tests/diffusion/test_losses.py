"""The hybrid loss against closed forms."""

import math

import pytest
import torch

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import discretised_nll, hybrid_loss, normal_kl, variational_bits
from rad.diffusion.processes import PerPixel, RegionAware
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import noised, step_levels

PROCESS = RegionAware(linear_betas())
T1 = PROCESS.sampled_steps
DOUBLE = torch.float64


def case(t, hole=None, seed=0):
    source = torch.Generator().manual_seed(seed)
    t = torch.as_tensor(t)
    if hole is None:
        hole = (torch.rand(len(t), 1, 4, 4, generator=source) > 0.5).float()
    regions = NoiseRegions.from_mask(hole)
    now, previous = PROCESS.noise(t, regions), PROCESS.noise(t - 1, regions)
    x0 = torch.rand(len(t), 3, 4, 4, generator=source, dtype=DOUBLE) * 2 - 1
    eps = torch.randn(x0.shape, generator=source, dtype=DOUBLE)
    output = torch.randn(len(t), 6, 4, 4, generator=source, dtype=DOUBLE).clamp(-1, 1)
    return (
        {"x0": x0, "x": noised(x0, now, noise=eps), "eps": eps, "now": now, "previous": previous},
        output,
        hole,
    )


def test_kl_of_normals_against_numerical_integration():
    grid = torch.linspace(-30, 30, 200_001, dtype=DOUBLE)
    p = torch.distributions.Normal(torch.tensor(0.3, dtype=DOUBLE), 0.8)
    q = torch.distributions.Normal(torch.tensor(-0.5, dtype=DOUBLE), 1.7)
    integral = torch.trapezoid(p.log_prob(grid).exp() * (p.log_prob(grid) - q.log_prob(grid)), grid)
    got = normal_kl(p.mean, 2 * p.stddev.log(), q.mean, 2 * q.stddev.log())
    torch.testing.assert_close(got, integral, rtol=1e-6, atol=1e-9)
    assert float(normal_kl(p.mean, p.stddev, p.mean, p.stddev)) == 0


def test_probabilities_of_all_8_bit_values_add_up_to_one():
    values = torch.arange(256, dtype=DOUBLE) / 127.5 - 1
    for mean, deviation in ((0.1, 0.02), (-0.99, 0.5), (3.0, 1.0)):
        nll = discretised_nll(values, torch.full_like(values, mean), torch.full_like(values, math.log(deviation)))
        assert float((-nll).exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("channels", [3, 6])
def test_only_given_pixels_count(channels):
    terms, output, hole = case([300, 0])
    pixels = hole * (torch.arange(4) % 2)
    output = output[:, :channels]
    losses = hybrid_loss(output, pixels=pixels, **terms)
    inside = pixels.bool().expand(-1, 3, -1, -1)
    error = (terms["eps"] - output[:, :3]).square()
    torch.testing.assert_close(losses.simple[0], error[0][inside[0]].mean())
    other = {**terms, **{name: torch.where(inside, terms[name], 0.3) for name in ("x0", "x", "eps")}}
    changed = hybrid_loss(torch.where(inside.repeat(1, channels // 3, 1, 1), output, 0.1), pixels=pixels, **other)
    torch.testing.assert_close(changed.total, losses.total)
    if channels == 6:
        bits = variational_bits(output, **{name: terms[name] for name in ("x0", "x", "now", "previous")})
        torch.testing.assert_close(losses.vlb[1], bits[1][inside[1]].mean())
    nothing = hybrid_loss(output, pixels=torch.zeros_like(pixels), **terms)
    assert nothing.total.tolist() == [0, 0]


def test_squared_error_region():
    terms, output, hole = case([300, 700])
    error = (terms["eps"] - output[:, :3]).square()
    everywhere = hybrid_loss(output, **terms)
    torch.testing.assert_close(everywhere.simple, error.mean((1, 2, 3)))
    noisy = hybrid_loss(output, loss_region="noisy", **terms)
    inside = hole.bool().expand_as(error)
    torch.testing.assert_close(noisy.simple[0], error[0][inside[0]].mean())
    torch.testing.assert_close(noisy.simple[1], error[1][inside[1]].mean())
    terms, output, _ = case([300, 700], torch.ones(2, 1, 4, 4))
    same = [hybrid_loss(output, loss_region=region, **terms).simple for region in ("all", "noisy")]
    torch.testing.assert_close(same[0], same[1])


def test_squared_error_of_the_moving_pixels_is_td_paints():
    """TD-Paint's known pixels hold the least noise, do not move, and do not count."""
    process, t = PerPixel(linear_betas(), known=0), torch.tensor([0, 300])
    hole = torch.zeros(2, 1, 4, 4)
    hole[..., :2, 1:] = 1
    regions = NoiseRegions.from_mask(hole)
    now, previous = process.noise(t, regions), process.noise(t - 1, regions)
    _, output, _ = case([300, 700])
    source = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(2, 3, 4, 4, generator=source, dtype=DOUBLE) for _ in range(2))
    terms = {"x0": x0, "x": noised(x0, now, noise=eps), "eps": eps, "now": now, "previous": previous}
    losses = hybrid_loss(output, loss_region="moving", **terms)
    error, inside = (eps - output[:, :3]).square(), hole.bool().expand_as(eps)
    torch.testing.assert_close(losses.simple[1], error[1][inside[1]].mean())
    torch.testing.assert_close(losses.simple[0], error[0].mean())  # the last step takes the noise of all pixels away
    bits = variational_bits(output, x0=x0, x=terms["x"], now=now, previous=previous)
    assert (bits[1][~inside[1]] == 0).all()
    assert (bits[1][inside[1]] > 0).all()


def test_weight_at_high_noise_is_that_of_v_prediction_up_to_its_limit():
    terms, output, hole = case([300, 700])
    a, s = terms["now"].alpha_map(), terms["now"].sigma_map()
    v = a * terms["eps"] - s * terms["x0"]
    x0_hat = (terms["x"] - s * output[:, :3]) / a
    predicted = a * output[:, :3] - s * x0_hat
    weighted = hybrid_loss(output[:, :3], weight_limit=1e9, **terms).simple
    torch.testing.assert_close(weighted, (v - predicted).square().mean((1, 2, 3)), rtol=1e-7, atol=1e-9)
    limit = 20.0
    assert float(1 / a[0].min() ** 2) < limit < float(1 / a[1].min() ** 2)
    factor = torch.where(hole == 1, torch.minimum(1 / a.square(), torch.tensor(limit)), 1.0)
    expected = (factor * (terms["eps"] - output[:, :3]).square()).mean((1, 2, 3))
    torch.testing.assert_close(hybrid_loss(output[:, :3], weight_limit=limit, **terms).simple, expected)


def test_without_a_learned_variance_the_total_is_the_squared_error():
    terms, output, _ = case([300, 700])
    losses = hybrid_loss(output[:, :3], vlb_weight=5.0, **terms)
    assert torch.equal(losses.total, losses.simple)
    assert (losses.vlb == 0).all()


def test_variational_term_pixel_by_pixel():
    t = torch.tensor([500, 1500])
    terms, output, hole = case(t)
    bits = variational_bits(output, **{name: terms[name] for name in ("x0", "x", "now", "previous")})
    moving = torch.stack([hole[0], 1 - hole[1]]).bool().expand_as(bits)  # phase 1: the hole; phase 2: the known
    assert (bits[~moving] == 0).all()
    assert (bits[moving] > 0).all()
    # the KL in closed form for pixels of one level, as in plain DDPM
    levels = step_levels(terms["now"], terms["previous"])
    b, posterior = levels.b[0, 1], levels.posterior[0, 1]
    fraction = (output[0, 3:] + 1) / 2
    variance = torch.exp(fraction * b.log() + (1 - fraction) * posterior.log())
    a, s = terms["now"].alpha[0, 1], terms["now"].sigma[0, 1]
    a_before = terms["previous"].alpha[0, 1]
    off = a_before * b / s.square() * (s / a) * (terms["eps"][0] - output[0, :3])  # difference of the two means
    expected = (
        0.5 * (variance.log() - posterior.log() - 1 + posterior / variance + off.square() / variance) / math.log(2)
    )
    torch.testing.assert_close(bits[0][moving[0]], expected[moving[0]], rtol=1e-7, atol=1e-9)


def test_a_model_equal_to_the_posterior_has_zero_divergence():
    terms, _output, _ = case([500, 1500])
    perfect = torch.cat([terms["eps"], -torch.ones_like(terms["eps"])], 1)
    losses = hybrid_loss(perfect, **terms)
    torch.testing.assert_close(losses.total, torch.zeros(2, dtype=DOUBLE), rtol=0, atol=1e-9)


def test_both_ends_of_the_phases_use_the_likelihood_of_the_pixels_that_become_clean():
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., :2] = 1
    for t, ends in ((0, hole), (T1, 1 - hole)):
        terms, output, _ = case([t], hole)
        losses = hybrid_loss(output, **terms)
        bits = variational_bits(output, **{name: terms[name] for name in ("x0", "x", "now", "previous")})
        inside = ends.bool().expand_as(bits)
        assert (bits[~inside] == 0).all()
        assert (bits[inside] > 0).all()
        assert bool(losses.total.isfinite().all())
        assert float(hybrid_loss(output, vlb_boundary="zero", **terms).vlb) == 0
    terms, output, _ = case([1], hole)
    assert float(hybrid_loss(output, vlb_boundary="zero", **terms).vlb) > 0


def test_gradients_are_finite_at_the_ends_and_the_variational_term_trains_the_variance_alone():
    hole = torch.zeros(3, 1, 4, 4)
    hole[1], hole[2, 0, 0, 0] = 1, 1
    for t in (0, 1, T1 - 1, T1, T1 + 1, 2 * T1 - 1):
        terms, output, _ = case([t, t, t], hole)
        for scale in (1.0, 10.0):
            raw = (scale * output).requires_grad_()
            losses = hybrid_loss(raw, vlb_weight=1.0, **terms)
            (gradient,) = torch.autograd.grad(losses.vlb.sum(), raw)
            assert bool(gradient.isfinite().all()), (t, scale)
            assert (gradient[:, :3] == 0).all()
    assert float(gradient[:, 3:].abs().max()) > 0


def test_weight_of_the_variational_term():
    terms, output, _ = case([500, 1500])
    for weight in (0.0, 1e-3, 1.0):
        losses = hybrid_loss(output, vlb_weight=weight, **terms)
        torch.testing.assert_close(losses.total, losses.simple + weight * losses.vlb)
