"""Parts of a diffusers pipeline folder (model_index.json): networks, text encoders, tokenizers.

They are read from JSON and tensors. No pickled code runs, no file names a class to run, a local path opens no connection.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from rad.models.base import INDEX
from rad.models.weights import (
    WEIGHT_FILES,
    Config,
    describing,
    fetch,
    is_hub_id,
    read_json,
    read_weights,
    require_finite_weights,
    require_fit,
    with_new_names,
)
from rad.networks import REGION_AWARE
from rad.resources import located, pip_install

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NetworkT = TypeVar("NetworkT", bound="ModelMixin")
EncoderT = TypeVar("EncoderT", bound="PreTrainedModel")
TokenizerT = TypeVar("TokenizerT", bound="PreTrainedTokenizerBase")


ENCODER_FILES = ("model.safetensors", "model.fp16.safetensors")
"""Names of weights of transformers."""

SHARD_INDEXES = tuple(
    f"{stem}.safetensors.index{variant}.json"
    for variant in ("", ".fp16")
    for stem in ("diffusion_pytorch_model", "model")
)
"""Names of the list of files of weights in several files."""

WITHOUT_EFFECT = {
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
    "pooled_projection_dim",
}
"""Settings in published config.json files that their networks ignore: of averaged weights (Stable Diffusion XL for inpainting),
and of Qwen-Image's first version."""

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that are not fetched; an IP-Adapter has its own image_encoder."""


@dataclass(frozen=True)
class Pipeline:
    """The content of model_index.json.

    Args:
        source: as given; revision: hub commit, None for a local folder.
        folder: on this machine; kind: class of the pipeline; parts: class of each component.
    """

    source: str
    revision: str | None
    folder: Path
    kind: str
    parts: dict[str, str]

    def configured(self) -> Pipeline:
        """With the settings of all parts, which a hub id fetches now; without weights."""
        if self.revision is None:
            return self
        folder = fetch(self.source, [INDEX, "*/config.json", "scheduler/*.json"], revision=self.revision)
        return replace(self, folder=folder)

    def fetched(self) -> Pipeline:
        """With the files of all parts, which a hub id fetches now."""
        if self.revision is None:
            return self
        wanted, used = [INDEX], [part for part in self.parts if part not in UNUSED]
        for part in used:
            wanted += [f"{part}/*.json", f"{part}/*.txt", f"{part}/*.jinja", f"{part}/spiece.model"]
            for stem in ("diffusion_pytorch_model", "model"):
                wanted += [f"{part}/{stem}.safetensors", f"{part}/{stem}-*-of-*.safetensors"]
        folder = fetch(self.source, wanted, revision=self.revision)
        without = [
            part for part in used if (folder / part / "config.json").is_file() and not _has_weights(folder / part)
        ]
        if without:  # stored in half precision alone, or before safetensors
            names = (*WEIGHT_FILES[1:], ENCODER_FILES[1], "*.fp16-*-of-*.safetensors")
            more = [f"{part}/{name}" for part in without for name in names]
            folder = fetch(self.source, [*wanted, *more], revision=self.revision)
        return replace(self, folder=folder)


def find_pipeline(source: str | Path, revision: str | None = None) -> Pipeline | None:
    """The pipeline of a folder or hub id; None without a model_index.json. Of a hub id only the index is fetched.

    Raises ValueError for a hub id that cannot be fetched, or a damaged index.
    """
    folder, commit = located(source), None
    if not folder.exists() and is_hub_id(source):
        folder = fetch(str(source), [INDEX], revision=revision)
        commit = folder.name
    if not (folder / INDEX).is_file():
        return None
    if revision is not None and commit is None:
        warnings.warn(f"revision={revision!r} is unused: {folder} is a local path", stacklevel=2)
    index = read_json(folder / INDEX)
    parts = {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) and re.fullmatch(r"[a-z]\w*", name)
    }
    kind = index.get("_class_name")
    return Pipeline(str(source), commit, folder, kind if isinstance(kind, str) else "", parts)


def network_folder(source: str | Path, *, weights: bool = True) -> Path:
    """The folder of a single network: local, or fetched for a hub id "organisation/name" or "organisation/name@revision".

    Without `weights`, only the settings are fetched.
    """
    if located(source).exists():
        return located(source)
    name, _, revision = str(source).partition("@")
    if isinstance(source, Path) or not is_hub_id(name):
        return Path(source)
    files = [WEIGHT_FILES[0], f"{WEIGHT_FILES[0]}.index.json", "diffusion_pytorch_model-*.safetensors"]
    return fetch(name, ["config.json", *(files if weights else [])], revision=revision or None)


def read_config(folder: Path, allowed: Sequence[str]) -> Config:
    """The config.json of a part, whose class must be one of `allowed`."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {' or '.join(allowed)} at {folder}: there is no config.json; give the whole folder"
        )
    config = read_json(path)
    if config.get("_class_name") not in allowed:
        raise ValueError(f"{path} describes a {config.get('_class_name')}; supported are {', '.join(allowed)}")
    return config


def load_network(
    kind: type[NetworkT],
    folder: Path,
    config: Config,
    *,
    dtype: torch.dtype = torch.float32,
    quantization: object = None,
) -> NetworkT:
    """The network of a part, in `dtype`, with every name and shape matched; in eval mode, frozen, on the CPU.

    `quantization`: of diffusers, with which its own loader reads the weights.

    Raises FileNotFoundError without weights, ValueError for weights or settings that do not fit, or are quantised.
    """
    settings, files = _settings(kind, folder, config), _files(folder)
    if not files:
        raise FileNotFoundError(f"no weights in {folder}: put {WEIGHT_FILES[0]} there")
    if quantization is not None:
        with describing(folder):
            options = {
                "torch_dtype": dtype,
                "local_files_only": True,
                "use_safetensors": True,
                "variant": _variant(files),
            }
            quantised = kind.from_pretrained(folder, quantization_config=quantization, **options)
        return quantised.eval().requires_grad_(False)
    state = {name: _cast(value, dtype) for file in files for name, value in with_new_names(read_weights(file)).items()}
    with describing(folder):
        network = _empty(kind, settings)
        require_fit(network, state)
        network.load_state_dict(state, assign=True)
    if config.get(REGION_AWARE):
        network.register_to_config(**{REGION_AWARE: True})
    return network.eval().requires_grad_(False)


def empty_network(kind: type[NetworkT], folder: Path, config: Config) -> NetworkT:
    """The network of a part on device "meta", without weights. Raises ValueError for settings that do not fit."""
    settings = _settings(kind, folder, config)
    with describing(folder):
        return _empty(kind, settings)


def _empty(kind: type[NetworkT], settings: Config) -> NetworkT:
    with torch.device("meta"):
        return kind(**settings)


def _settings(kind: type[NetworkT], folder: Path, config: Config) -> Config:
    settings = {name: value for name, value in config.items() if not name.startswith("_") and name != REGION_AWARE}
    known = inspect.signature(kind.__init__).parameters.keys()
    unknown = sorted(settings.keys() - known - WITHOUT_EFFECT)
    if unknown:
        raise ValueError(
            f"{folder / 'config.json'} has settings unknown to {kind.__name__} ({', '.join(map(repr, unknown[:5]))}): "
            "take weights that are not quantised, or remove them"
        )
    return {name: value for name, value in settings.items() if name in known}


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _files(folder: Path) -> list[Path]:
    whole = next((folder / name for name in (*WEIGHT_FILES, *ENCODER_FILES) if (folder / name).is_file()), None)
    if whole is not None:
        return [whole]
    index = next((folder / name for name in SHARD_INDEXES if (folder / name).is_file()), None)
    if index is None:
        return []
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} lists no files: fetch it again")
    shards = sorted({folder / Path(name).name for name in names.values()})
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing, of {len(shards)} files: fetch the folder again")
    return shards


def require_parts(folder: Path, names: Iterable[str]) -> None:
    """Raise FileNotFoundError for a part that is missing or has no weights; reads no weights."""
    for name in names:
        place = folder / name
        needed = place if name.startswith("tokenizer") else place / "config.json"
        if not needed.exists():
            raise FileNotFoundError(f"no {needed}: fetch the whole pipeline folder again")
        if needed != place and not _files(place):
            raise FileNotFoundError(f"no weights in {place}: fetch the whole pipeline folder again")


def _has_weights(folder: Path) -> bool:
    try:
        return bool(_files(folder))
    except FileNotFoundError:
        return False


def _variant(files: Sequence[Path]) -> str | None:
    """Name of the variant of the files for the loaders of diffusers and transformers."""
    return "fp16" if ".fp16" in files[0].name else None


def require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ValueError(
            f"text needs the package transformers, which is not installed: {pip_install('text')}"
        ) from None


UNTRUSTED = ("auto_map", "quantization_config", "attn_implementation")
"""Settings of an encoder that make transformers import or fetch something."""


def load_encoder(
    kind: type[EncoderT], folder: Path, *, dtype: torch.dtype = torch.float32, quantization: object = None
) -> EncoderT:
    """A text or image encoder of transformers, from safetensors; in eval mode, frozen, on the CPU.

    `quantization`: of transformers.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"no {config}: fetch the whole pipeline folder again")
    content = read_json(config)
    settings = {n: value for n, value in content.items() if not n.startswith("_") and n not in UNTRUSTED}
    if "quantization_config" in content:
        raise ValueError(f"{folder} holds quantised weights: take those that are not")
    files = _files(folder)
    if not files:
        raise FileNotFoundError(f"no safetensors in {folder}: fetch the whole pipeline folder again")
    quantised = {} if quantization is None else {"quantization_config": quantization, "torch_dtype": dtype}
    with describing(folder), quietly():
        assert kind.config_class is not None
        encoder, info = kind.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # output_loading_info makes it a pair
            folder,
            config=kind.config_class.from_dict(settings),
            variant=_variant(files),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **quantised,
        )
        if info["missing_keys"]:
            raise ValueError(f"{len(info['missing_keys'])} weights are missing, as {sorted(info['missing_keys'])[0]}")
    if quantization is not None:
        return encoder.eval().requires_grad_(False)
    require_finite_weights(encoder.state_dict(), folder)
    return encoder.to(dtype).eval().requires_grad_(False)


def load_tokenizer(kind: type[TokenizerT], folder: Path) -> TokenizerT:
    """A tokenizer of transformers, from JSON and text files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no {folder}: fetch the whole pipeline folder again")
    with describing(folder), quietly():
        return kind.from_pretrained(folder, local_files_only=True)


_QUIET = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Context without hints and progress bars of diffusers and transformers. Threads take turns, as both are global settings."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    with _QUIET:
        before, bars = [module.get_verbosity() for module in (ours, theirs)], theirs.is_progress_bar_enabled()
        ours.set_verbosity_error()
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            ours.set_verbosity(before[0])
            theirs.set_verbosity(before[1])
            if bars:
                theirs.enable_progress_bar()
