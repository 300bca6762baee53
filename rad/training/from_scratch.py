"""The network that is trained: loaded from a base model, or new; and the checks that it can be trained."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from rad.diffusion.processes import Flow, TimeOrigin, Uniform
from rad.diffusion.schedules import linear_betas
from rad.models.adapter import Kind
from rad.models.base import load_base
from rad.models.guided_diffusion import QkvOrder
from rad.models.trainable import Parts, load_parts, load_text
from rad.models.vae import IDENTITY, Autoencoder, PretrainedAutoencoder
from rad.models.weights import empty_unet, require_run, weights_hash

ProcessKind = Literal["region_aware", "tdpaint", "uniform"]


TrainedPrediction = Literal["epsilon", "v_prediction"]


def _load(base: str, *, image_size: int, head_channels: int, qkv_order: QkvOrder, revision: str | None) -> Parts:
    """The parts of a latent model, or of one on pixels."""
    parts = load_parts(base, image_size=image_size, revision=revision)
    if parts is not None:
        return parts
    loaded = load_base(base, image_size=image_size, head_channels=head_channels, qkv_order=qkv_order, revision=revision)
    prediction: Any = loaded.prediction_type
    own = Uniform(loaded.betas)
    return Parts(loaded.unet, "pixel", own, prediction, IDENTITY, None, base, loaded.revision, loaded.hash)


def _require_whole(parts: Parts, process: ProcessKind) -> None:
    if parts.kind != "stable":
        raise ValueError(
            f"of {parts.source} an adapter is trained, not all of it: set model.lora, and process 'region_aware'"
        )
    if process != "uniform":
        what = "set process 'uniform'" if parts.source == "scratch" else "set model.lora, or process 'uniform'"
        raise ValueError(f"all weights of a model that is told texts are trained for one level an image alone: {what}")


def _require_trainable(parts: Parts, *, image_size: int, weight_limit: float, time_origin: TimeOrigin) -> None:
    network: Any = parts.network
    own, flow = network.config, isinstance(parts.base_process, Flow)
    if parts.prediction not in ("epsilon", "v_prediction", "velocity"):
        raise ValueError(
            f"{parts.source} predicts {parts.prediction!r}; training is of networks that predict 'epsilon' or 'v_prediction'"
        )
    outputs = (3, 6) if parts.kind == "pixel" and parts.prediction == "epsilon" else (parts.autoencoder.channels,)
    classes = own.get("num_class_embeds")
    if own["in_channels"] != parts.autoencoder.channels or own["out_channels"] not in outputs or classes is not None:
        what = "RGB images" if parts.kind == "pixel" else "these latents"
        raise ValueError(
            f"the network has {own['in_channels']} input and {own['out_channels']} output channels and "
            f"{classes or 'no'} classes; training is of {what}: {parts.autoencoder.channels}, and "
            f"{' or '.join(map(str, outputs))}, without classes"
        )
    if weight_limit != 1 and parts.prediction != "epsilon":
        raise ValueError(f"weight_limit is {weight_limit}, for networks that predict 'epsilon': remove it")
    if flow and time_origin != "adm":
        raise ValueError(f"time_origin is {time_origin!r}; a flow is told its own sigma: remove it")
    if parts.kind == "pixel":
        return
    halved = len(own["block_out_channels"]) - 1 if parts.kind == "latent" else 0
    multiple = parts.autoencoder.factor * (own["patch_size"] if parts.kind == "stable3" else 2**halved)
    if image_size % multiple:
        raise ValueError(f"the images are {image_size} pixels wide; {parts.source} needs a multiple of {multiple}")


def _from_scratch(
    fields: dict[str, Any],
    autoencoder: Autoencoder,
    text_encoder: str | None,
    *,
    prediction: TrainedPrediction,
    image_size: int,
    seed: int,
) -> Parts:
    kind = UNet2DModel if text_encoder is None else UNet2DConditionModel
    cells = image_size // autoencoder.factor
    if fields.get("sample_size", cells) != cells:
        raise ValueError(
            f"model.unet.sample_size is {fields['sample_size']}, and images of {image_size} pixels give it {cells}: "
            "remove it, or set data.size"
        )
    if fields.get("dropout"):
        raise ValueError(
            f"model.unet.dropout is {fields['dropout']}: its draws would depend on how a batch is split, and a resumed run would "
            "have others; remove it"
        )
    fields = {**fields, "sample_size": cells}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            require_run(empty_unet(fields, kind))
            network = kind(**fields)
        except Exception as error:  # settings of a wrong type or size fail anywhere, with anything
            raise ValueError(
                f"model.unet does not describe a {kind.__name__}: {' '.join(str(error).split())}"
            ) from error
    with torch.no_grad():  # ADM starts from a network that predicts zero
        network.conv_out.weight.zero_()
        network.conv_out.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    frozen: dict[str, nn.Module] = {}
    text = None
    if isinstance(autoencoder, PretrainedAutoencoder):
        if autoencoder.shift:
            raise ValueError(
                f"the autoencoder has shift_factor {autoencoder.shift}, which pipelines of this kind leave out when they decode: "
                "set it to 0 in its config.json"
            )
        frozen["autoencoder"] = autoencoder.network
    if text_encoder is not None:
        text = load_text(Path(text_encoder), network, autoencoder)
        frozen["text_encoder"] = text.encoders[0]
    # A run is resumed on the latents and the texts that it began with.
    given = weights_hash({f"{part}.{name}": w for part in frozen for name, w in frozen[part].state_dict().items()})
    name: Kind = "stable" if text is not None else "latent" if frozen else "pixel"
    return Parts(network, name, Uniform(linear_betas()), prediction, autoencoder, text, "scratch", None, given)
