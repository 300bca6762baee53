"""The reverse loop without torch equals `rad.sampling.Sampler` to float32 rounding, with one network behind both."""

import numpy as np
import pytest
import torch

from rad.diffusion import RegionAware as TorchRegionAware
from rad.diffusion import UNetDenoiser, linear_betas
from rad.diffusion import Uniform as TorchUniform
from rad.errors import NotFiniteError
from rad.methods import METHODS as TORCH_METHODS
from rad.networks.unet import RegionAwareUNet, patch
from rad.rng import KeyedNoise as TorchNoise
from rad.runtime.sampling import Denoiser, KeyedNoise, Sampler
from rad.runtime.sampling.methods import METHODS, RAD, Method, RePaint, find
from rad.runtime.sampling.process import RegionAware, Uniform
from rad.sampling import Sampler as TorchSampler
from rad.sampling import Task
from tests.tiny_networks import small_unet

BETAS = linear_betas()
IMAGES = ["a", "b"]
COMMON = ("preset_steps", "preset_eta", "preset_solver", "preset_spacing", "multistep", "fractional")


class TorchNetwork:
    """A patched network of rad as a `Network`."""

    def __init__(self, network: RegionAwareUNet) -> None:
        self.network = network

    def __call__(self, sample: np.ndarray, timesteps: np.ndarray, levels: np.ndarray) -> np.ndarray:
        assert sample.dtype == timesteps.dtype == levels.dtype == np.float32
        assert (levels.sum(1) == 1).all()
        index = None if levels.shape[1] == 1 else torch.from_numpy(levels).argmax(1)
        with torch.no_grad():
            return self.network(torch.from_numpy(sample), torch.from_numpy(timesteps), index=index).sample.numpy()


@pytest.fixture(scope="module")
def network() -> RegionAwareUNet:
    return patch(small_unet(size=16))


def problem(*, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    image = random.random((2, 3, 16, 16), np.float32) * 2 - 1
    hole = np.zeros((2, 1, 16, 16), np.float32)
    hole[:, :, 3:12, 5:14] = 1
    if soft:
        hole[0, 0, :6] = np.linspace(0, 1, 6, dtype=np.float32)[:, None]
    return image, hole


def both(network, method: Method, *, soft=False, prediction="epsilon", learned=True, **choice):
    """x of the loop without torch, and of `rad.sampling.Sampler`."""
    image, hole = problem(soft=soft)
    schedule = vars(method.choose(**choice))
    rad = method.weights == "rad"
    sampler = Sampler((RegionAware if rad else Uniform)(BETAS.numpy()), method, **schedule)
    denoiser = Denoiser(TorchNetwork(network), prediction, learned_variance=learned)
    mine = sampler(denoiser, image, hole, noise=KeyedNoise(1, IMAGES, [0, 3]))
    settings = {name: getattr(method, name) for name in vars(method)}
    torch_method = TORCH_METHODS[method.name](**settings)
    reference = TorchSampler((TorchRegionAware if rad else TorchUniform)(BETAS), torch_method, **schedule)
    torch_denoiser = UNetDenoiser(network, prediction_type=prediction, learned_variance=learned)
    task = Task.from_image(torch.from_numpy(image), torch.from_numpy(hole))
    with TorchNoise(1, IMAGES, [0, 3]) as noise:
        expected = reference(torch_denoiser, task, noise=noise)
    assert sampler.nfe == expected.nfe
    assert mine.dtype == np.float32
    return mine, expected.raw.numpy()


@pytest.mark.spread(4)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"eta": 1.0},
        {"spacing": "quad"},
        {"solver": "ddpm", "spacing": "official"},
        {"solver": "ddpm", "eta": 0.3, "spacing": "trailing"},
        {"solver": "ddim", "spacing": "logsnr"},
    ],
    ids=str,
)
def test_rad_equals_the_torch_loop(network, choice, soft):
    mine, expected = both(network, RAD(), soft=soft, steps=6, **choice)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("prediction", "learned"), [("v_prediction", True), ("sample", False), ("epsilon", False)])
def test_predictions_and_variances_equal(network, prediction, learned):
    mine, expected = both(network, RAD(), prediction=prediction, learned=learned, steps=5, solver="ddpm")
    np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-4)


@pytest.mark.spread(2)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("method", [RePaint(3, 2), RePaint(resamplings=1), RePaint(2, 3)], ids=str)
def test_repaint_with_time_travel_equals_the_torch_loop(network, method, soft):
    mine, expected = both(network, method, soft=soft, steps=7)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=5e-4)


def test_presets_and_settings_equal_those_of_the_torch_methods():
    for name, kind in METHODS.items():
        reference = TORCH_METHODS[name]
        assert {each: getattr(kind, each) for each in COMMON} == {each: getattr(reference, each) for each in COMMON}
        assert vars(kind()) == vars(reference())
        for choice in ({}, {"solver": "ddpm"}, {"solver": "ddim"}, {"eta": 0.5}, {"spacing": "quad", "steps": 3}):
            assert vars(kind().choose(**choice)) == vars(reference().choose(**choice))
    assert {METHODS[name].weights for name in METHODS} == {"rad", "base"}


def test_errors_equal_those_of_the_torch_methods():
    for settings in ({"jump_length": 0}, {"resamplings": True}, {"resamplings": 1.5}):
        messages = []
        for kind in (RePaint, TORCH_METHODS["repaint"]):
            with pytest.raises(ValueError, match=next(iter(settings))) as error:
                kind(**settings)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    for choice in ({"solver": "x"}, {"spacing": "x"}, {"eta": 2}, {"eta": "x"}):
        messages = []
        for kind in (RAD, TORCH_METHODS["rad"]):
            with pytest.raises(ValueError, match=next(iter(choice))) as error:
                kind().choose(**choice)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_methods_are_found_by_name_and_by_instances_of_both_kinds():
    assert find("repaint", ("rad", "repaint")) == RePaint()
    assert find(RePaint(4, 2), ("rad", "repaint")) == RePaint(4, 2)
    assert find(TORCH_METHODS["repaint"](4, 2), ("rad", "repaint")) == RePaint(4, 2)
    with pytest.raises(ValueError, match=r"method 'ddnm' is not available without torch.*allowed are rad$"):
        find("ddnm", ("rad",))
    with pytest.raises(ValueError, match="method is 3; give a name"):
        find(3, ("rad",))


def test_values_that_are_not_finite_are_reported_with_the_network_call():
    def broken(sample: np.ndarray, timesteps: np.ndarray, levels: np.ndarray) -> np.ndarray:
        output = np.zeros_like(sample)
        output[1] = np.nan if timesteps.max() < 500 else 0
        return output

    image, hole = problem(soft=False)
    sampler = Sampler(RegionAware(BETAS.numpy()), RAD(), **vars(RAD().choose(steps=5, solver="ddim")))
    with pytest.raises(
        NotFiniteError, match=r"network's output is not finite at network call 4 of 5, timestep 250"
    ) as e:
        sampler(Denoiser(broken, "epsilon"), image, hole, noise=KeyedNoise(0, IMAGES, [0, 0]))
    assert e.value.rows == [1]
