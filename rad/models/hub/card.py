"""Model cards: Markdown with metadata (YAML) at the top, by which the hub finds, labels and shows a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rad.models.adapter import Kind
from rad.models.weights import is_hub_id

TEXT: tuple[Kind, ...] = ("stable", "stable_xl", "stable3", "flux", "qwen_image", "z_image", "flux2_klein")
"""Kinds of models that are guided by text."""

MACHINE_PATH = re.compile(
    r"(?<![\w:/.~)\]-])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+=~ -]*[\w.@+=~-][/\\])+[\w.@+=~-]+|(?<![\w/])~/[\w./-]+"
)
"""Absolute paths, such as those of home folders; not the paths within web addresses, and no fractions."""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a model card. The hub's names: `base_model`, `library_name`, `pipeline_tag`, `tags`, `model-index`, ...

    Args:
        kind: see `AdapterInfo`. adapter: peft's layout, library "peft"; otherwise diffusers' layout, library "diffusers".
        region_aware: a model with a timestep per pixel, for inpainting; otherwise a base model.
        base: hub id of the base; other sources are left out, as they are local paths.
        license: its id on the hub; "other" needs license_name.
        datasets: their hub ids. images: files beside the card, for the hub's gallery.
        metrics: values by name; data: the name of the data that they were measured on.
    """

    kind: Kind
    adapter: bool
    region_aware: bool = True
    base: str | None = None
    license: str | None = None
    license_name: str | None = None
    datasets: Sequence[str] = ()
    images: Sequence[str] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    data: str = "held-out images"

    @property
    def task(self) -> str:
        """The hub has no task for inpainting; its inpainting models are image-to-image, with the tag "inpainting"."""
        if self.region_aware:
            return "image-to-image"
        return "text-to-image" if self.kind in TEXT else "unconditional-image-generation"

    def entries(self, name: str) -> dict[str, Any]:
        """The YAML entries of a model with this name; those without a value are absent."""
        from huggingface_hub import EvalResult, ModelCardData

        results = [
            EvalResult(
                task_type=self.task,
                dataset_type=self.datasets[0] if self.datasets else "held-out",
                dataset_name=self.data,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(value, 5),
            )
            for metric, value in sorted(self.metrics.items())
        ]
        tags = ["region-aware-diffusion", "inpainting"] if self.region_aware else []
        content = ModelCardData(
            base_model=self.base if self.base and is_hub_id(self.base) else None,
            library_name="peft" if self.adapter else "diffusers",
            pipeline_tag=self.task,
            tags=[*tags, "diffusion", *(["lora"] if self.adapter else [])],
            license=self.license,
            license_name=self.license_name,
            datasets=list(self.datasets) or None,
            model_name=name if results else None,
            eval_results=results or None,
        ).to_dict()
        if self.images:
            content["widget"] = [{"text": "samples", "output": {"url": image}} for image in self.images]
        return content


def with_metadata(card: str, entries: dict[str, Any], *, name: str | None = None) -> str:
    """The card with these entries at its top. Its text and its other entries stay; an entry with the value None is removed.

    Args:
        name: new name of the model in `model-index`, if the card has one.

    Raises ValueError for metadata that is no YAML mapping.
    """
    from huggingface_hub import CardData, ModelCard
    from yaml import YAMLError

    begun = re.match(r"\s*---[ \t]*\r?\n", card)
    try:
        parsed = ModelCard(card if begun else f"---\n{{}}\n---\n\n{card}", ignore_metadata_errors=True)
        content = {**parsed.data.to_dict(), **entries}
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the metadata of the card is no YAML mapping ({reason}): correct README.md") from None
    if name is not None and isinstance(index := content.get("model-index"), list):
        content["model-index"] = [{**model, "name": name} for model in index]
    data = CardData(**{key: value for key, value in content.items() if value is not None})
    return f"---\n{data.to_yaml()}\n---\n\n{parsed.text.strip()}\n"


def shown(source: str, revision: str | None) -> str:
    """How a card names a base: a hub id or a shipped name as it is, of a local path the last part."""
    if revision is not None or (MACHINE_PATH.search(source) is None and not re.match(r"\.{0,2}[/\\~]", source)):
        return source
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def without_paths(text: str) -> str:
    """The text with the last part of each absolute path in place of the path."""
    return MACHINE_PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)
