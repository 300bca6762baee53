"""A model that runs with torch."""

from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from functools import partial

from PIL import Image

from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import Counts, Kind, total_calls
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.prepare import build_samplers
from rad.inpainting.result import Inpainted, Progress
from rad.masks.reading.hole import Hole
from rad.methods import METHODS
from rad.methods.registry import cost, create, steps_within
from rad.models.loaded_model import PLAIN, Condition
from rad.sampling.method import Method
from rad.studio.fillers.filler import (
    SIZE_POLICY,
    Plan,
    arguments,
    check_amounts,
    check_counts,
    check_method,
    check_text,
    margin_of,
    probe,
    sampler_fields,
    setting_text,
    steps_of,
    thin_steps_of,
    window_of,
)
from rad.studio.fillers.listing import list_methods
from rad.studio.schema import InpaintFields, ModelView


class TorchFiller:
    """See `Filler`.

    Args:
        id: for clients; source: the checkpoint as given at the start.
    """

    def __init__(self, id: str, source: str, inpainter: Inpainter) -> None:
        self.inpainter, model = inpainter, inpainter.model
        self.view = ModelView(
            id=id,
            source=source,
            runtime="torch",
            kind=model.kind,
            size=list(model.size),
            text=model.takes_text,
            adapter=model.has_adapter,
            size_policy=model.preferred.size_policy or SIZE_POLICY,
        )
        self.preferred = model.preferred
        self.methods = list_methods(inpainter)
        self.checkpoint: dict[str, object] = {
            "checkpoint": source,
            "device": str(inpainter.device),
            "precision": inpainter.precision,
            **window_of(model.preferred),
        }

    def plan(self, fields: InpaintFields, hole: Hole, *, rate: Callable[[], float], most_windows: int) -> Plan:
        method = self._method(fields)
        check_text(fields, self.view)
        self.inpainter.check([self._condition(fields, method)])
        thin_steps, warnings = thin_steps_of(fields)
        warnings += margin_of(fields)[1]
        thin = thin_steps is not None
        layout = Layout.choose(self.inpainter.size, self.preferred, fields.size_policy, fields.margin, thin=thin)
        counts = layout.count_windows(hole[None], most=most_windows)
        given = sampler_fields(fields)
        schedule = method.choose(steps=None if method.weights == "none" else fields.steps, **given)
        sampler = self.inpainter.sampler(method, **vars(schedule))
        samplers = build_samplers(
            sampler, self.inpainter.model, pyramid=layout.pyramid, thin_steps=thin_steps, spacing=schedule.spacing
        )
        units: dict[Kind, int] = {kind: each.cost.units for kind, each in samplers.items() if kind != "first"}
        steps = self._steps(fields, method, counts, units, rate)
        schedule = method.choose(steps=steps, **given)
        samplers["first"] = self.inpainter.sampler(method, **vars(schedule))
        calls: dict[Kind, int] = {kind: each.cost.nfe for kind, each in samplers.items()}
        nfe = fields.num_samples * total_calls(counts, calls)
        unused = method.unused(**given)
        if method.weights == "none":
            steps = None
            unused += [name for name in ("steps", "budget_nfe", "budget_seconds") if getattr(fields, name) is not None]
            unused += ["average"] if (fields.average or 1) > 1 else []
        else:
            steps = schedule.steps
        settings = {item.name: setting_text(getattr(method, item.name)) for item in fields_of(method)}
        warnings += [f"{name} has no effect on {method.name}" for name in unused]
        if not method.soft and bool(((hole > 0) & (hole < 1)).any()):
            warnings.append(f"{method.name} fills grey pixels of a mask completely: use rad to keep part of the image")
        nfe *= 1 if method.weights == "none" else fields.average or 1
        return Plan(
            *(steps, schedule.solver, schedule.spacing, schedule.eta),
            settings,
            nfe,
            counts.total(),
            layout.pyramid,
            thin_steps,
            warnings,
        )

    def fill(
        self,
        fields: InpaintFields,
        plan: Plan,
        image: Image.Image,
        hole: Hole | None,
        on_step: Callable[[Progress], None],
    ) -> Inpainted:
        method = create(fields.method, plan.settings)
        return self.inpainter(
            image,
            hole,
            method=method,
            condition=self._condition(fields, method),
            **{**arguments(fields, plan), **({"average": 1} if method.weights == "none" else {})},
            on_step=on_step,
        )

    def probe(self) -> Inpainted:
        method = next(name for name, view in self.methods.items() if view.nfe and not view.vjp)
        return probe(self.inpainter, self.inpainter.size, method)

    def refines(self, fields: InpaintFields) -> bool:
        """See `Filler`."""
        return fields.method not in METHODS or METHODS[fields.method]().takes_strength

    def _method(self, fields: InpaintFields) -> Method:
        check_method(fields, self.view, self.methods)
        method = create(fields.method, {name: setting_text(value) for name, value in fields.set.items()})
        check_counts(method)
        return method

    def _condition(self, fields: InpaintFields, method: Method) -> Condition:
        condition = Condition(fields.prompt, fields.negative_prompt, fields.guidance)
        if method.weights == "none" and condition != PLAIN:
            raise ValueError(f"a prompt has no effect on {method.name}, which uses no network: leave it out")
        return condition

    def _steps(
        self,
        fields: InpaintFields,
        method: Method,
        counts: Counts,
        units: Mapping[Kind, int],
        rate: Callable[[], float],
    ) -> int | None:
        if method.weights == "none":
            check_amounts(fields)
            return None
        process = self.inpainter.model.base_process
        spacing = method.choose(**sampler_fields(fields)).spacing
        return steps_of(
            fields,
            method.name,
            counts=counts,
            units=units,
            rate=rate,
            within=partial(steps_within, method, base_process=process, spacing=spacing),
            least=lambda: cost(method, 1, base_process=process, spacing=spacing).units,
        )
