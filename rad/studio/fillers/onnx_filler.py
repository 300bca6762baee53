"""A model that runs with ONNX Runtime; loads no torch."""

import inspect
from collections.abc import Callable
from dataclasses import fields as fields_of
from functools import partial

from PIL import Image

from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import Kind, total_calls
from rad.inpainting.result import Inpainted, Progress
from rad.masks.reading.hole import Hole
from rad.runtime.inpainter import OnnxInpainter
from rad.runtime.sampling.methods import METHODS, Method
from rad.studio.fillers.filler import (
    MOST_COUNT,
    SIZE_POLICY,
    Plan,
    arguments,
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
from rad.studio.schema import InpaintFields, MethodView, ModelView, SettingView


class OnnxFiller:
    """See `Filler`.

    Args:
        id: for clients; source: the checkpoint as given at the start.
    """

    def __init__(self, id: str, source: str, inpainter: OnnxInpainter) -> None:
        self.inpainter = inpainter
        self.view = ModelView(
            id=id,
            source=source,
            runtime="onnx",
            kind="pixel",
            size=list(inpainter.size),
            text=False,
            adapter="rad" in inpainter.methods,
            size_policy=inpainter.model.preferred.size_policy or SIZE_POLICY,
        )
        self.preferred = inpainter.model.preferred
        self._most_steps = len(inpainter.model.betas)
        self.methods = {name: self._describe(METHODS[name]()) for name in inpainter.methods}
        self.checkpoint: dict[str, object] = {"checkpoint": source, "runtime": "onnx", **window_of(self.preferred)}

    def plan(self, fields: InpaintFields, hole: Hole, *, rate: Callable[[], float], most_windows: int) -> Plan:
        method = self._method(fields)
        check_text(fields, self.view)
        thin_steps, warnings = thin_steps_of(fields)
        warnings += margin_of(fields)[1]
        thin = thin_steps is not None
        layout = Layout.choose(self.inpainter.size, self.preferred, fields.size_policy, fields.margin, thin=thin)
        counts = layout.count_windows(hole[None], most=most_windows)
        given = sampler_fields(fields)
        schedule = vars(method.choose(steps=fields.steps, **given))
        samplers = self.inpainter.samplers(
            self.inpainter.sampler(method, **schedule),
            pyramid=layout.pyramid,
            thin_steps=thin_steps,
            spacing=schedule["spacing"],
        )
        calls: dict[Kind, int] = {kind: each.nfe for kind, each in samplers.items() if kind != "first"}
        steps = steps_of(
            fields,
            method.name,
            counts=counts,
            units=calls,
            rate=rate,
            within=partial(self.inpainter.steps_within, method, **given),
            least=lambda: self.inpainter.sampler(method, steps=1, **given).nfe,
        )
        schedule = vars(method.choose(steps=steps, **given))
        calls["first"] = self.inpainter.sampler(method, **schedule).nfe
        nfe = fields.num_samples * total_calls(counts, calls) * (fields.average or 1)
        settings = {item.name: setting_text(getattr(method, item.name)) for item in fields_of(method)}
        return Plan(
            **schedule,
            settings=settings,
            nfe=nfe,
            windows=counts.total(),
            pyramid=layout.pyramid,
            thin_steps=thin_steps,
            warnings=warnings,
        )

    def fill(
        self,
        fields: InpaintFields,
        plan: Plan,
        image: Image.Image,
        hole: Hole | None,
        on_step: Callable[[Progress], None],
    ) -> Inpainted:
        return self.inpainter(
            image,
            hole,
            method=METHODS[fields.method](**{name: int(text) for name, text in plan.settings.items()}),
            **arguments(fields, plan),
            on_step=on_step,
        )

    def probe(self) -> Inpainted:
        return probe(self.inpainter, self.inpainter.size, self.inpainter.methods[0])

    def refines(self, fields: InpaintFields) -> bool:
        """See `Filler`."""
        return True

    def _method(self, fields: InpaintFields) -> Method:
        check_method(fields, self.view, self.methods)
        kind, known = METHODS[fields.method], [item.name for item in fields_of(METHODS[fields.method])]
        if unknown := [name for name in fields.set if name not in known]:
            raise ValueError(
                f"method {fields.method} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}"
            )
        method = kind(**fields.set)
        check_counts(method)
        return method

    def _describe(self, method: Method) -> MethodView:
        schedule = method.choose(**self.preferred.sampler(method.name))
        summary, _, _ = (inspect.getdoc(type(method)) or "").partition("; see")
        settings = [
            SettingView(
                name=item.name,
                type="int",
                default=getattr(method, item.name),
                low=item.metadata["low"],
                high=MOST_COUNT,
                help=item.metadata["help"],
            )
            for item in fields_of(method)
        ]
        return MethodView(
            name=method.name,
            summary=summary,
            paper=summary.partition("(")[2].partition(")")[0],
            steps=schedule.steps,
            max_steps=self._most_steps,
            nfe=self.inpainter.sampler(method).nfe * self.preferred.mean_of(method.name),
            vjp=0,
            solver=schedule.solver,
            spacing=schedule.spacing,
            eta=schedule.eta,
            solvers=["ddpm", "ddim", *(["dpm++2m"] if method.multistep else [])],
            soft=True,
            settings=settings,
        )
