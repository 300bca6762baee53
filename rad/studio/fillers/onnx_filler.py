"""A model that runs with ONNX Runtime; loads no torch."""

import inspect
from collections.abc import Callable
from dataclasses import fields as fields_of

import numpy as np
from PIL import Image

from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.result import Inpainted, Progress
from rad.runtime.inpainter import OnnxInpainter
from rad.runtime.sampling.methods import METHODS, Method
from rad.studio.fillers.filler import (
    MOST_COUNT,
    Hole,
    Plan,
    check_amounts,
    check_counts,
    check_text,
    setting_text,
    too_little,
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
        )
        self._most_steps = len(inpainter.model.betas)
        self.methods = {name: self._describe(METHODS[name]()) for name in inpainter.methods}
        self.checkpoint: dict[str, object] = {"checkpoint": source, "runtime": "onnx"}

    def plan(self, fields: InpaintFields, hole: Hole, *, rate: Callable[[], float], most_windows: int) -> Plan:
        method = self._method(fields)
        check_text(fields, self.view)
        each = self.inpainter.count_windows(
            hole[None], size_policy=fields.size_policy, margin=fields.margin, most=most_windows
        )
        windows = fields.num_samples * each
        schedule = method.choose(steps=fields.steps, solver=fields.solver, spacing=fields.spacing, eta=fields.eta)
        schedule = {**vars(schedule), "steps": self._steps(fields, method, schedule.steps, windows, rate)}
        nfe = self.inpainter.sampler(method, **schedule).nfe
        settings = {item.name: setting_text(getattr(method, item.name)) for item in fields_of(method)}
        return Plan(**schedule, settings=settings, nfe=nfe * windows, windows=each)

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
            steps=plan.steps,
            solver=plan.solver,
            spacing=plan.spacing,
            eta=plan.eta,
            seed=fields.seed,
            num_samples=fields.num_samples,
            size_policy=fields.size_policy,
            margin=fields.margin,
            feather=fields.feather,
            batch_size=fields.batch_size,
            names=fields.name,
            extend=None if fields.extend is None else Extension.parse(fields.extend),
            on_step=on_step,
        )

    def probe(self) -> Inpainted:
        height, width = self.inpainter.size
        image, hole = Image.new("RGB", (width, height)), np.ones((height, width), np.float32)
        self.inpainter(image, hole, method=self.inpainter.methods[0], steps=1)
        return self.inpainter(image, hole, method=self.inpainter.methods[0], steps=3)

    def _method(self, fields: InpaintFields) -> Method:
        if fields.method not in self.methods:
            raise ValueError(
                f"method {fields.method!r} is not available on {self.view.id}; allowed are {', '.join(self.methods)}"
            )
        kind, known = METHODS[fields.method], [item.name for item in fields_of(METHODS[fields.method])]
        if unknown := [name for name in fields.set if name not in known]:
            raise ValueError(
                f"method {fields.method} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}"
            )
        method = kind(**fields.set)
        check_counts(method)
        return method

    def _steps(
        self, fields: InpaintFields, method: Method, preset: int, windows: int, rate: Callable[[], float]
    ) -> int:
        """Steps of a request, or as many as its budget allows."""
        check_amounts(fields)
        if fields.budget_nfe is None and fields.budget_seconds is None:
            return preset
        given = {"solver": fields.solver, "spacing": fields.spacing, "eta": fields.eta}
        if fields.budget_seconds is None:
            assert fields.budget_nfe is not None
            return self.inpainter.steps_within(method, fields.budget_nfe, **given)
        each = rate() * max(1, windows)
        try:
            return self.inpainter.steps_within(method, int(fields.budget_seconds / each), **given)
        except ValueError:
            least = self.inpainter.sampler(method, steps=1, **given).nfe
            raise too_little(fields.budget_seconds, method.name, least * each) from None

    def _describe(self, method: Method) -> MethodView:
        schedule = method.choose()
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
            nfe=self.inpainter.sampler(method).nfe,
            vjp=0,
            solver=schedule.solver,
            spacing=schedule.spacing,
            eta=schedule.eta,
            solvers=["ddpm", "ddim", *(["dpm++2m"] if method.multistep else [])],
            soft=True,
            settings=settings,
        )
