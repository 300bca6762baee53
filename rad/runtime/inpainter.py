"""Inpainting with NumPy and ONNX Runtime: `OnnxInpainter.from_pretrained(folder)(image, mask, steps=20, seed=0)`."""

import os
from collections.abc import Callable, Sequence

from rad.arguments import integer
from rad.diffusion.choices import Solver, Spacing, most_count, steps_within
from rad.inpainting.arrays import ImageLike, MaskLike
from rad.inpainting.canvas.layout import Layout, SizePolicy
from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.canvas.preview import Finisher
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.canvas.resize import Floats
from rad.inpainting.canvas.windows import Kind
from rad.inpainting.inputs import Inputs, check_numbers, find_extension, find_thin_steps, warn_unused
from rad.inpainting.keywords import understood
from rad.inpainting.memory import peak_memory, reset_peak_memory
from rad.inpainting.result import Inpainted, Progress
from rad.keys import Part, check_seed
from rad.masks.reading.format import MaskChannel, MaskFormat, MaskResize, Polarity
from rad.models.settings.preferred import Preferred
from rad.runtime.filling import WindowFiller
from rad.runtime.folder import ExportedModel
from rad.runtime.network import OnnxNetwork
from rad.runtime.sampling.denoiser import Denoiser
from rad.runtime.sampling.methods import METHODS, find
from rad.runtime.sampling.process import RegionAware, Uniform
from rad.runtime.sampling.sampler import Sampler


class OnnxInpainter:
    """Inpainting pipeline for images of any size, with NumPy and ONNX Runtime on the CPU; it loads no torch.

    Results equal those of `rad.Inpainter` to within one grey level. Threads may share it.

    Example:
        inpainter = OnnxInpainter.from_pretrained("rad-onnx")    # a folder of `rad export CHECKPOINT --onnx rad-onnx`
        result = inpainter("photo.png", "mask.png", size_policy="crop")   # white in the mask = fill
        result.images[0].save("filled.png")

    Args:
        model: an exported model. threads: of one network call; None: one for each CPU core.

    Attributes:
        size: (height, width) of the model's images in pixels.
        methods: names of the methods that the model has: "rad" with RAD's weights, "repaint" with base weights.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None) -> None:
        if threads is not None:
            threads = integer("threads", threads, low=1, high=1024)
        self.model, self.threads, self.size = model, threads, model.size
        files = {file: OnnxNetwork(file, threads=threads) for file in model.networks.values()}  # one may serve both
        self._networks = {name: files[file] for name, file in model.networks.items()}
        self.methods = tuple(name for name, kind in METHODS.items() if kind.weights in self._networks)

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"OnnxInpainter({str(self.model.folder)!r}, size={width}x{height}, precision={self.model.precision!r}, "
            f"methods={self.methods!r})"
        )

    @classmethod
    @understood
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, threads: int | None = None, size: int | None = None
    ) -> "OnnxInpainter":
        """Load a folder that `rad export CHECKPOINT --onnx FOLDER` wrote.

        `size`: image side in pixels, a multiple of `ExportedModel.side_multiple`; None: the checkpoint's setting, otherwise the
        model's own.
        Raises FileNotFoundError for a missing file, ValueError for a damaged one, another version of the format or such a size.
        """
        return cls(ExportedModel.read(path).resized(size), threads=threads)

    @understood
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        mask: MaskLike | Sequence[MaskLike] | None = None,
        *,
        method: object = "rad",
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        seed: int = 0,
        num_samples: int = 1,
        average: int | None = None,
        thin_steps: int | None = None,
        mask_polarity: Polarity = "white_is_fill",
        mask_channel: MaskChannel = "auto",
        mask_threshold: float | None = None,
        soft_mask: bool = False,
        mask_resize: MaskResize = "error",
        mask_dilate: int = 0,
        size_policy: SizePolicy | None = None,
        margin: int | None = None,
        pyramid: Pyramid | None = None,
        batch_size: int = 8,
        names: Sequence[Part] | Part | None = None,
        feather: int = 0,
        extend: Extension | tuple[int, int, int, int] | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Inpainted:
        """Fill the holes of one image or several, see `rad.Inpainter`, whose arguments and defaults these are.

        Args:
            mask: a generator, such as "wide", needs torch, which draws its holes; other masks do not.
            method: a name in `methods`, or an instance such as `rad.runtime.RePaint(resamplings=5)`.
            feather: needs SciPy, if above 0. So does size_policy "zoom", where it enlarges.

        Raises ValueError or FileNotFoundError for an unsuitable input or option, before any network call.
        """
        seed, extension = check_seed(seed), find_extension(extend, mask)
        check_numbers(
            num_samples=num_samples, average=average, thin_steps=thin_steps, batch_size=batch_size, feather=feather
        )
        format = MaskFormat(
            polarity=mask_polarity,
            channel=mask_channel,
            threshold=mask_threshold,
            soft=soft_mask,
            resize=mask_resize,
            dilate=mask_dilate,
        )
        inputs = Inputs.align(image, mask, names=names)
        sampler = self.sampler(method, steps=steps, eta=eta, solver=solver, spacing=spacing)
        given = Preferred(steps, solver, spacing, eta, average, thin_steps=thin_steps)
        chosen = self.model.preferred.complete(given, method=sampler.method.name)
        average, name = chosen.average or 1, sampler.method.name
        thin_steps = find_thin_steps(chosen.thin_steps, method=name, strength=1, stacklevel=4)
        layout = Layout.choose(
            self.size, self.model.preferred, size_policy, margin, pyramid, thin=thin_steps is not None
        )
        samplers = self.samplers(sampler, pyramid=layout.pyramid, thin_steps=thin_steps, spacing=chosen.spacing)
        warn_unused(inputs.masks, format, margin=margin, size_policy=layout.policy, stacklevel=4)
        inputs, holes = inputs.extended(extension, inputs.read(format, seed))
        rows = zip(inputs.images, holes, inputs.names, strict=True)
        canvases = [canvas for row in rows for canvas in layout.canvases(*row, samples=num_samples, average=average)]
        finisher = Finisher(inputs.images, holes, num_samples, feather, [layout.region(hole) for hole in holes])
        filler = WindowFiller(samplers, self.denoiser(sampler.method.weights), seed, batch_size)
        reset_peak_memory()
        nfe, seconds = filler.run(canvases, on_step, finisher.preview)
        finished, raw = finisher.finish(canvases)
        return Inpainted(finished, raw, nfe, 0, seconds, peak_memory())

    def sampler(
        self,
        method: object,
        *,
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
    ) -> Sampler:
        """The reverse loop of a method on this model; see `rad.Inpainter.sampler`, also for None.

        Raises ValueError for a choice that the model or the method does not support.
        """
        chosen = find(method, self.methods)
        model = self.model
        process = (
            RegionAware(model.betas, time_origin=model.time_origin) if chosen.weights == "rad" else Uniform(model.betas)
        )
        given = model.preferred.sampler(chosen.name, steps=steps, solver=solver, spacing=spacing, eta=eta)
        return Sampler(process, chosen, **vars(chosen.choose(**given)))

    def samplers(
        self,
        sampler: Sampler,
        *,
        pyramid: Pyramid | None = None,
        thin_steps: int | None = None,
        spacing: Spacing | None = None,
    ) -> dict[Kind, Sampler]:
        """The reverse loop of each kind of windows, see `rad.inpainting.prepare.build_samplers`."""

        def another(steps: int, strength: float) -> Sampler:
            schedule = sampler.method.choose(steps=steps, solver=sampler.solver, spacing=spacing, eta=sampler.eta)
            return Sampler(sampler.process, sampler.method, **vars(schedule), strength=strength)

        samplers: dict[Kind, Sampler] = {"first": sampler}
        if thin_steps is not None:
            samplers["thin"] = another(thin_steps, 1.0)
        if pyramid is not None:
            samplers["finer"] = another(pyramid.sampler_steps, pyramid.strength)
        return samplers

    def steps_within(
        self,
        method: object,
        budget: int,
        *,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
    ) -> int:
        """The most steps of a method that cost at most `budget` network calls per window. ValueError if there are none."""
        chosen = find(method, self.methods)
        given = self.model.preferred.sampler(chosen.name, solver=solver, spacing=spacing, eta=eta)
        schedule = chosen.choose(**given)

        def cost(steps: int) -> int:
            return self.sampler(chosen, **{**vars(schedule), "steps": steps}).nfe

        most = most_count(len(self.model.betas), schedule.spacing)
        return steps_within(cost, budget, most=most, name=chosen.name)

    def denoiser(self, weights: str) -> Denoiser:
        """The denoiser of the network "rad" or "base"."""
        model = self.model
        return Denoiser(
            self._networks[weights], model.prediction, clip=model.clip, learned_variance=model.learned_variance[weights]
        )

    def count_windows(
        self,
        hole: Floats,
        *,
        size_policy: SizePolicy | None = None,
        margin: int | None = None,
        pyramid: Pyramid | None = None,
        most: int | None = None,
    ) -> int:
        """Number of windows for a hole (1,H,W) float32, at all scales.

        Each costs `sampler(...).nfe` network calls per sample; at finer scales, and for thin windows, those of `samplers`.

        `most`: the count of a scale stops at `most` + 1; None: never.
        """
        layout = Layout.choose(self.size, self.model.preferred, size_policy, margin, pyramid)
        return layout.count_windows(hole, most=most).total()
