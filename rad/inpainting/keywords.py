"""Keyword arguments under the names of diffusers' pipelines, and errors that name ours."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from rad.console import did_you_mean

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

EQUAL = {"mask_image": "mask", "num_inference_steps": "steps", "num_images_per_prompt": "num_samples"}
"""Arguments of diffusers that mean exactly the same."""

CONDITION = "condition=Condition({}) of rad.models"
OURS = {
    "generator": "seed=, a whole number",
    "prompt": CONDITION.format("prompt=...") + ", for text-to-image models",
    "negative_prompt": CONDITION.format("negative=..."),
    "guidance_scale": CONDITION.format("guidance=..."),
    "ip_adapter_image": CONDITION.format("style_image=..."),
    "control_image": CONDITION.format("control_image=..."),
    "controlnet_conditioning_scale": CONDITION.format("control_scale=..."),
    "output_type": "no such choice: `images` of the result are PIL images",
    "return_dict": "no such choice: the result is an `Inpainted`",
    "latents": "seed= and names=, which fix the noise",
    "height": "size_policy=, for images of another size than the model's",
    "width": "size_policy=, for images of another size than the model's",
    "padding_mask_crop": "size_policy='zoom' and margin=",
    "callback_on_step_end": "on_step=",
    "callback": "on_step=",
    "scheduler": "solver= and spacing=",
    "torch_dtype": "precision='bf16' or '32'",
    "dtype": "precision='bf16' or '32'",
    "pretrained_model_name_or_path": "path=",
    "device_map": "device=",
}
"""Arguments of diffusers that have no exact counterpart, and what to give in their place."""


def understood(
    function: Callable[Parameters, Result], advice: Mapping[str, str] = OURS
) -> Callable[Parameters, Result]:
    """`function`, which also takes the names in `EQUAL`. Raises TypeError that explains any other unknown name by `advice`."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for word in [word for word in kwargs if word not in names]:
            name = EQUAL.get(word)
            if name not in names:
                raise TypeError(_explain(word, names, advice))
            if name in kwargs:
                raise TypeError(f"{word} is another name of {name}: give one of them")
            kwargs[name] = kwargs.pop(word)
        return function(*args, **kwargs)

    return call


def _explain(word: str, names: list[str], advice: Mapping[str, str]) -> str:
    if word in advice:
        return f"there is no argument {word}: give {advice[word]}"
    return f"there is no argument {word}{did_you_mean(word, [*names, *EQUAL])}: allowed are {', '.join(names)}"
