"""Checks before a run: how networks run, and methods on a loaded model; the networks of methods, and the sampler."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from rad.arguments import describe
from rad.diffusion.choices import Schedule
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.canvas.windows import Kind
from rad.methods import METHODS
from rad.methods.lama import LaMa
from rad.methods.m2s import M2S, Coarse
from rad.methods.registry import find
from rad.models.latent_mask import Grid, Prefill
from rad.models.load import load_model
from rad.models.loaded_model import PLAIN, Condition, LoadedModel
from rad.models.vae import IDENTITY
from rad.networks.compiled import CompileMode
from rad.sampling.method import CustomSampler, Method, SamplingMethod
from rad.sampling.sampler import Sampler

Precision = Literal["32", "bf16"]

NoiseDevice = Literal["cpu", "device"]
"""Where noise is drawn. "cpu": equal on all machines. "device": quicker, and equal only on the same kind of accelerator."""

WITH_ATTENTION = ("stable", "stable_xl")
"""Kinds of models whose denoisers are a `TextDenoiser`."""


def check_running(
    device: torch.device,
    *,
    precision: Precision = "32",
    compile: CompileMode = "off",
    noise_device: NoiseDevice = "cpu",
) -> None:
    """Raise ValueError for an unknown choice, or one that `device` does not support or that has no effect there."""
    kinds = {"precision": (precision, Precision), "compile": (compile, CompileMode)}
    for name, (value, kind) in (kinds | {"noise_device": (noise_device, NoiseDevice)}).items():
        if value not in get_args(kind):
            raise ValueError(f"{name} is {describe(value)}; allowed are {', '.join(map(repr, get_args(kind)))}")
    if compile == "reduce-overhead" and device.type != "cuda":
        raise ValueError(
            f"compile is 'reduce-overhead', which records CUDA graphs; the device is {str(device)!r}: use 'default', or a "
            "CUDA device"
        )
    if noise_device == "device" and device.type == "cpu":
        raise ValueError(
            "noise_device is 'device', which has no effect on the CPU: leave it out, or use an accelerator"
        )


def as_method(method: str | Method) -> Method:
    """The method with this name, or `method` itself. Raises ValueError for an unknown name or another type."""
    if not isinstance(method, str | Method):
        raise ValueError(f"method is {describe(method)}; give a name, or an instance such as RePaint()")
    return find(method)() if isinstance(method, str) else method


def check_inputs(
    model: LoadedModel, conditions: Sequence[Condition], *, grid: Grid | None = None, fill: Prefill = "smooth"
) -> None:
    """Raise ValueError for a condition or setting that the model does not support, or that has no effect on it."""
    model.check(conditions)
    if model.autoencoder is IDENTITY and (grid is not None or fill != "smooth"):
        raise ValueError(
            f"{model.source} works on pixels: there is no latent grid or encoder; leave out `grid` and `fill`"
        )


def check_conditions(method: Method, conditions: Sequence[Condition]) -> None:
    """Raise ValueError for a condition if the method uses no network."""
    if method.weights == "none" and any(condition != PLAIN for condition in conditions):
        raise ValueError(
            f"a condition has no effect on method {method.name!r}, which uses no network: leave out the prompt and the images "
            "of guidance, or use another method"
        )


def load_networks(method: Method, model: LoadedModel, device: torch.device) -> Method:
    """The method with the networks in its settings, loaded from their paths: M2S's coarse model, LaMa's network.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file of another kind, M2S on a latent model, or a coarse model whose size does not divide the model's.
    """
    if isinstance(method, LaMa):
        return method.load(device)
    if isinstance(method, M2S) and model.autoencoder is not IDENTITY:
        raise ValueError(f"m2s needs a model of pixels, and {model.source} works on latents: use another method")
    if not isinstance(method, M2S) or not isinstance(method.coarse, str):
        return method
    coarse = load_model(method.coarse, device=device)
    if coarse.autoencoder is not IDENTITY:
        raise ValueError(f"m2s needs a coarse model of pixels, and {method.coarse} works on latents: use another")
    size, height = coarse.size[0], model.size[0]
    if height % size or size == height:
        allowed = ", ".join(str(divisor) for divisor in range(1, height) if height % divisor == 0)
        raise ValueError(
            f"{method.coarse} is a model of {size}x{size} images; m2s needs a size that divides: {allowed}"
        )
    return replace(method, coarse=Coarse(coarse.denoiser([], adapter=False), coarse.base_process, size))


def check_method(method: Method, model: LoadedModel, *, bf16: bool) -> None:
    """Raises ValueError for a method that the model or its precision does not support."""
    name, others = method.name, {other: kind for other, kind in METHODS.items() if other != method.name}
    if model.for_inpainting and method.weights not in ("inpainting", "none"):
        raise ValueError(
            f"method {name!r} cannot use {model.source}, a model trained for inpainting: use inpainting_model, "
            "or the plain text-to-image model"
        )
    if method.weights == "inpainting" and not model.for_inpainting:
        raise ValueError(
            f"method {name!r} needs a model trained for inpainting, such as Stable Diffusion's, and {model.source} is none: "
            "use another method"
        )
    if method.weights == "adapter" and not model.has_adapter:
        zero_shot = ", ".join(other for other, kind in others.items() if kind.weights in ("base", "none"))
        raise ValueError(
            f"method {name!r} needs an adapter, and {model.source} is a base model: use one of {zero_shot}"
        )
    if method.weights == "base" and not model.has_base:
        assert model.info is not None
        raise ValueError(
            f"method {name!r} needs a base model. {model.source} was trained on per-pixel noise only "
            f"(model.process.unconditional_share is 0): use rad, or its own base model, {model.info.base!r}"
        )
    if method.needs_text and model.kind not in WITH_ATTENTION:
        raise ValueError(
            f"method {name!r} reads the attention of a prompt, which {model.source} does not have: it needs a text-to-image "
            "model with cross-attention (Stable Diffusion 1, 2, XL)"
        )
    if method.needs_grad and bf16:
        free = ", ".join(other for other, kind in others.items() if not kind.needs_grad)
        raise ValueError(
            f"method {name!r} differentiates the network, for which bf16 is too coarse: "
            f"use precision '32', or one of {free}"
        )
    method.check()
    method.check_autoencoder(model.autoencoder)


def build_sampler(
    method: Method,
    model: LoadedModel,
    *,
    steps: int | None,
    eta: float | None,
    solver: Solver | None,
    spacing: Spacing | None,
    strength: float = 1.0,
    bf16: bool,
) -> Sampler:
    """The reverse loop of a checked method, with the checkpoint's settings.

    Warns about steps, a solver, a spacing or an eta without effect.
    """
    given = model.preferred.sampler(method.name, steps=steps, solver=solver, spacing=spacing, eta=eta)
    sampler = _sampler(method, model, method.choose(**given), strength=strength, bf16=bf16)
    unused = method.unused(solver=solver, spacing=spacing, eta=eta)
    if method.weights == "none" and steps not in (None, method.preset_steps):
        unused.append("steps")
    for name in unused:
        warnings.warn(f"{name} has no effect on method {method.name!r}", stacklevel=4)
    return sampler


def build_samplers(
    sampler: Sampler,
    model: LoadedModel,
    *,
    pyramid: Pyramid | None,
    thin_steps: int | None,
    spacing: Spacing | None,
) -> dict[Kind, Sampler]:
    """The reverse loop of each kind of windows; `sampler`: of the first, with this `spacing`.

    Args:
        pyramid: None: there are no finer scales; thin_steps: steps of thin windows, None: these are as others.

    Raises ValueError for a method that cannot start from the coarser result, or too many steps.
    """
    method = sampler.method
    samplers: dict[Kind, Sampler] = {"first": sampler}
    solver, eta = (sampler.solver, sampler.eta) if method.uses_eta else (None, None)
    if thin_steps is not None:
        schedule = method.choose(steps=thin_steps, solver=solver, spacing=spacing, eta=eta)
        samplers["thin"] = _sampler(method, model, schedule, strength=1.0, bf16=sampler.bf16)
    if pyramid is None:
        return samplers
    if not method.takes_strength:
        raise ValueError(
            f"size_policy 'pyramid' starts finer scales from the coarser result, which method {method.name!r} cannot: use "
            "size_policy 'crop' or 'zoom', or a method of the standard loop, such as rad or repaint"
        )
    schedule = method.choose(steps=pyramid.sampler_steps, solver=solver, spacing=spacing, eta=eta)
    samplers["finer"] = _sampler(method, model, schedule, strength=pyramid.strength, bf16=sampler.bf16)
    return samplers


def _sampler(method: Method, model: LoadedModel, schedule: Schedule, *, strength: float, bf16: bool) -> Sampler:
    process = method.process(model.base_process, "adm" if model.info is None else model.info.time_origin)
    assert isinstance(method, CustomSampler | SamplingMethod)
    return Sampler(process, method, **vars(schedule), strength=strength, bf16=bf16)
