"""Publishes a model folder on the Hugging Face hub, after checks: safetensors only, no optimiser states, no local paths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rad.images.atomic import write_text
from rad.models.adapter import AdapterInfo
from rad.models.hub.card import MACHINE_PATH, Metadata, shown, with_metadata
from rad.models.hub.download import split_revision
from rad.models.weights import is_hub_id, read_json

ResultT = TypeVar("ResultT")

SUFFIXES = (".json", ".safetensors", ".txt", ".md", ".png", ".jpg", ".webp", ".model")
"""Files that are published, with LICENSE; others stay."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OPTIMIZER = re.compile(r"(^|\.)(optimizer|optimizer_states|exp_avg|exp_avg_sq|momentum_buffer)(\.|$)")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class HubBase:
    """The base model of an adapter on the hub: its id, and the commit."""

    name: str
    revision: str | None


def check_name(name: str) -> str:
    """Raise ValueError for a name that the hub would refuse."""
    if not NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise ValueError(
            f"the name {name!r} is no USER/NAME: use letters, digits, '-', '_' and '.', at most 96 in each part"
        )
    return name


def model_files(folder: Path) -> list[Path]:
    """The files to publish. Raises ValueError for a folder that is no model or holds pickles or optimiser states."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: give an adapter, a base model, or the folder of a training run"
        )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    pickles = [path for path in files if path.suffix in PICKLES]
    if pickles:
        raise ValueError(
            f"{pickles[0]} is a pickle, with optimiser states or weights that others should not load: remove it, or give a "
            "folder with .safetensors alone"
        )
    files = [path for path in files if path.suffix in SUFFIXES or path.name == "LICENSE"]
    weights = [path for path in files if path.suffix == ".safetensors"]
    known = ("rad_config.json", "model_index.json", "config.json", "unet/config.json")
    if not weights or not any((folder / name).is_file() for name in known):
        raise ValueError(f"{folder} is no model: give a folder with .safetensors and {' or '.join(known)}")
    for path in weights:
        _check_header(path)
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_header(path: Path) -> None:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
    except Exception as error:  # a damaged header can raise almost anything
        raise ValueError(f"{path} is damaged ({error}): export it again") from None
    states = [name for name in names if OPTIMIZER.search(name)]
    if states or not names:
        reason = f"holds optimiser states ({states[0]})" if states else "holds no weights"
        raise ValueError(f"{path} {reason}: give the folder step=N of a training run, or export the model again")


def changed_files(
    folder: Path, files: list[Path], *, base: HubBase | None, license: str | None = None
) -> dict[str, str]:
    """New contents by path in the folder: the card with metadata, and settings with `base` in place of a local path.

    Raises ValueError for a local path that would be published, or a base that has no effect.
    """
    contents: dict[str, str] = {}
    info = AdapterInfo.read(folder) if (folder / "rad_config.json").is_file() else None
    adapter = (folder / "adapter_config.json").is_file()
    if base is not None and not adapter:
        raise ValueError(f"{folder} is no adapter, so --base {base.name} has no effect: leave it out")
    local = None if info is None or info.base_revision is not None else info.base
    if adapter and base is None and local is not None:
        raise ValueError(
            f"the base of {folder} is {local!r}, which is not on the hub: publish it with `rad push {local} USER/BASE`, then "
            "give --base USER/BASE"
        )
    if base is not None:
        changes = {"base": base.name, "base_revision": base.revision}
        contents["rad_config.json"] = _settings(folder / "rad_config.json", changes)
        contents["adapter_config.json"] = _settings(
            folder / "adapter_config.json", {"base_model_name_or_path": base.name}
        )
    elif local is not None:
        contents["rad_config.json"] = _settings(folder / "rad_config.json", {"base": shown(local, None)})
    contents["README.md"] = _card(folder, files, info, base, local, license)
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".json", ".md") and path.stat().st_size < 10**6:
            _check_paths(path, contents.get(name) or path.read_text(encoding="utf-8", errors="replace"))
    return contents


def _settings(path: Path, changes: dict[str, str | None]) -> str:
    return json.dumps({**read_json(path), **changes}, indent=2) + "\n"


def _card(
    folder: Path,
    files: list[Path],
    info: AdapterInfo | None,
    base: HubBase | None,
    local: str | None,
    license: str | None,
) -> str:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.resolve().name}\n"
    if local is not None:
        text = text.replace(f"`{local}`", f"`{shown(local, None)}`")
        if base is not None:
            revision = "" if base.revision is None else f", revision {base.revision}"
            text = text.replace(f"`{shown(local, None)}`, hash", f"`{base.name}`{revision}, hash")
    index = folder / "model_index.json"
    kind = read_json(index).get("_class_name", "") if index.is_file() else ""
    known = None if info is None or info.base_revision is None else info.base
    metadata = Metadata(
        info.kind if info is not None else "stable" if "Stable" in str(kind) or "Flux" in str(kind) else "pixel",
        adapter=(folder / "adapter_config.json").is_file(),
        region_aware=info is not None,
        base=base.name if base is not None else known,
        license=license,
        images=[path.name for path in files if path.parent == folder and path.suffix in (".png", ".jpg", ".webp")][:4],
    )
    entries = metadata.entries(folder.name)
    return with_metadata(text, {name: value for name, value in entries.items() if not _has(text, name, value, license)})


def _has(text: str, name: str, value: object, license: str | None) -> bool:
    """Whether the card has this entry of its own, which stays; base model and a given licence are newer."""
    if name == "base_model" or (name == "license" and license is not None):
        return False
    front = re.match(r"\s*---[ \t]*\r?\n(.*?)\n---", text, re.DOTALL)
    return front is not None and re.search(rf"^{re.escape(name)}:", front[1], re.MULTILINE) is not None


def _check_paths(path: Path, text: str) -> None:
    if path.suffix == ".json" and path.name not in ("rad_config.json", "adapter_config.json", "config.json"):
        return  # tokenizers hold words that read like paths
    found = MACHINE_PATH.search(text)
    if found:
        raise ValueError(f"{path} names a path of this machine, {found[0]!r}: replace it in the file, then push again")


def find_hub_base(source: str) -> HubBase:
    """The commit of a base model on the hub, "USER/NAME[@REVISION]". Raises ValueError if it is not there."""
    from huggingface_hub import HfApi

    name, revision = split_revision(source)
    if not is_hub_id(name):
        raise ValueError(f"--base {source}: give the USER/NAME of the base model on the hub")
    commit = hub_call(f"--base {source}", lambda: HfApi().model_info(name, revision=revision).sha)
    return HubBase(name, commit)


def upload(folder: Path, name: str, *, private: bool, revision: str | None, message: str) -> str:
    """Publish all files of a folder; returns the address. Raises ValueError for an error of token, name or network."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ValueError("no token of the hub: run `hf auth login`, or set HF_TOKEN to a token with the right to write")
    api = HfApi()
    hub_call(name, lambda: api.create_repo(name, private=private or None, exist_ok=True))
    if private and not hub_call(name, lambda: api.model_info(name)).private:
        raise ValueError(f"{name} exists and is public: leave --private out, or give another name")
    if revision is not None:
        hub_call(name, lambda: api.create_branch(name, branch=revision, exist_ok=True))
    commit = hub_call(
        name,
        lambda: api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message),
    )
    return str(commit.repo_url)


def hub_call(name: str, call: Callable[[], ResultT]) -> ResultT:
    """The result of a call to the hub. Its errors become a ValueError of one line, with what to do."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        return call()
    except HFValidationError as error:
        raise ValueError(f"the hub takes no name {name!r} ({' '.join(str(error).split())})") from error
    except LocalTokenNotFoundError as error:
        raise ValueError("no token of the hub: run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to reach the hub") from error
    except Exception as error:  # the hub client raises the errors of whichever HTTP library its version uses
        code = getattr(getattr(error, "response", None), "status_code", None)
        raise ValueError(_advice(name, code, error)) from error


def _advice(name: str, code: int | None, error: Exception) -> str:
    if code == 401:
        return (
            f"{name}: the hub refuses the token, or does not have this model: run `hf auth login`, or correct HF_TOKEN"
        )
    if code == 403:
        return f"{name}: this token may not write there: give a name of your own, or a token with the right to write"
    if code == 404:
        return f"{name} is not on the hub, or hidden from this token: check name and revision"
    if code is not None:
        reason = " ".join(str(error).split())[:200]
        return f"{name}: the hub answers {code} ({reason}): try again later"
    return f"the hub cannot be reached ({type(error).__name__}): check the connection and HF_ENDPOINT, then try again"


def staged(folder: Path, files: list[Path], contents: dict[str, str], place: Path) -> None:
    """Fill `place` with what is published: changed contents, and links to the other files. `folder` stays as it is."""
    for path in files:
        target = place / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    for name, text in contents.items():
        write_text(place / name, text)
