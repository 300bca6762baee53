"""What clients send and receive: models of the HTTP API, from which its OpenAPI document follows."""

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rad.masks.reading.format import MaskFormat
from rad.studio.jobs.job import State

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
EXTEND = r"^[0-9]{1,5},[0-9]{1,5},[0-9]{1,5},[0-9]{1,5}$"
TEXT = r"^[^\x00]*$"

Solver = Literal["ddpm", "ddim", "dpm++2m"]
Spacing = Literal["even", "trailing", "quad", "logsnr", "official"]


ShortText = Annotated[str, Field(max_length=200)]


NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: object, info: ValidationInfo) -> object:
        """Forms carry numbers as text; pydantic would also take "1_0"."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, str) and {int, float} & {kind, *get_args(kind)} and not re.fullmatch(NUMBER, value):
            raise PydanticCustomError("number", "Input should be a plain number such as 20 or 0.5")
        return value


class NoFields(_Fields):
    """A request with files alone."""


class MaskFields(_Fields):
    """How a mask file is read, as by `rad sample`."""

    mask_polarity: Annotated[
        Literal["white_is_fill", "white_is_known"], Field(description="meaning of white in the file")
    ] = "white_is_fill"
    mask_channel: Annotated[
        Literal["auto", "grey", "alpha", "red", "green", "blue"],
        Field(description="part of the file; auto: transparency if it varies, a painted colour, or grey values"),
    ] = "auto"
    mask_threshold: Annotated[
        float | None, Field(ge=0, le=1, description="brighter pixels are white; default: a half, without many greys")
    ] = None
    soft_mask: Annotated[bool, Field(description="keep grey values; such pixels are filled in part")] = False
    mask_resize: Annotated[Literal["error", "nearest"], Field(description="masks of another size than the image")] = (
        "error"
    )
    mask_dilate: Annotated[int, Field(ge=0, le=4096, description="pixels by which holes grow")] = 0

    @property
    def mask_format(self) -> MaskFormat:
        """Raises ValueError for choices that exclude each other."""
        return MaskFormat(
            polarity=self.mask_polarity,
            channel=self.mask_channel,
            threshold=self.mask_threshold,
            soft=self.soft_mask,
            resize=self.mask_resize,
            dilate=self.mask_dilate,
        )


class InpaintFields(MaskFields):
    """Settings of `POST /v1/inpaint`. A field that is left out has the model's setting, or a default."""

    model: Annotated[str | None, Field(pattern=NAME, description="id in GET /v1/models; default: the first")] = None
    method: Annotated[str, Field(pattern=NAME, description="name in GET /v1/methods")] = "rad"
    set: Annotated[
        dict[ShortText, bool | int | float | ShortText],
        Field(max_length=40, description="settings of the method; in a form: the text of a JSON object"),
    ] = {}
    steps: Annotated[
        int | None, Field(ge=1, le=1000, description="noise levels; default: the model's or the method's")
    ] = None
    budget_nfe: Annotated[
        int | None, Field(ge=1, le=10**7, description="most network calls of a window, in place of steps; a VJP is two")
    ] = None
    budget_seconds: Annotated[
        float | None, Field(gt=0, le=10**6, description="most seconds of computing, in place of steps; an estimate")
    ] = None
    solver: Annotated[Solver | None, Field(description="default: the model's or the method's")] = None
    spacing: Annotated[
        Spacing | None, Field(description="spacing of the noise levels; default: the model's or the solver's")
    ] = None
    eta: Annotated[float | None, Field(ge=0, le=1, description="fresh noise, 0 (DDIM) to 1 (DDPM)")] = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1, description="seed of the noise")] = 0
    num_samples: Annotated[int, Field(ge=1, le=1000, description="results")] = 1
    average: Annotated[
        int | None,
        Field(ge=1, le=100, description="a result is the mean of this number of samples; default: the model's, or 1"),
    ] = None
    thin_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="steps of windows without a hole wider than 8 pixels, for rad; default: the model's",
        ),
    ] = None
    size_policy: Annotated[
        Literal["error", "resize", "crop", "zoom", "pyramid"] | None,
        Field(
            description="images of another size than the model's; crop: windows around the hole; zoom: one region around "
            "all holes, scaled to the model's size; pyramid: windows at several scales, coarse to fine, for large holes; "
            "default: the model's, or crop"
        ),
    ] = None
    margin: Annotated[
        int | None,
        Field(
            ge=0, le=65536, description="context of a window in pixels; default: the model's, or an eighth of its size"
        ),
    ] = None
    feather: Annotated[
        int, Field(ge=0, le=65536, description="width of a blend into known pixels; 0: they stay exact")
    ] = 0
    batch_size: Annotated[int, Field(ge=1, le=64, description="windows per network call")] = 8
    extend: Annotated[
        str | None, Field(pattern=EXTEND, description="new pixels at the borders: LEFT,TOP,RIGHT,BOTTOM")
    ] = None
    prompt: Annotated[str, Field(max_length=2000, pattern=TEXT, description="for models with text")] = ""
    negative_prompt: Annotated[str, Field(max_length=2000, pattern=TEXT, description="content to avoid")] = ""
    guidance: Annotated[float | None, Field(ge=0, le=1000, description="classifier-free guidance; 1: off")] = None
    name: Annotated[
        str, Field(pattern=NAME, description="file name of the image: key of the noise, and beginning of file names")
    ] = "image.png"
    watched: Annotated[bool, Field(description="cancel the job when nobody reads its events for five seconds")] = False


class Error(BaseModel):
    """An error."""

    error: Annotated[str, Field(description="one sentence")]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok"] = "ok"
    version: str
    running: Annotated[int, Field(description="running jobs")]
    waiting: Annotated[int, Field(description="waiting jobs")]
    limit: Annotated[int, Field(description="most waiting jobs")]


class ModelView(BaseModel):
    """A loaded model."""

    id: str
    source: Annotated[str, Field(description="as at the start of the server; the checkpoint of rad sample")]
    runtime: Literal["torch", "onnx"]
    kind: str
    size: Annotated[list[int], Field(description="height and width of a window in pixels")]
    text: Annotated[bool, Field(description="takes a prompt")]
    adapter: Annotated[bool, Field(description="has weights for per-pixel noise, as RAD needs")]
    size_policy: Annotated[str, Field(description="default of a request")]


class Models(BaseModel):
    """All loaded models."""

    default: str
    models: list[ModelView]


class SettingView(BaseModel):
    """A setting of a method."""

    name: str
    type: Literal["float", "int", "bool", "text", "choice"]
    default: bool | int | float | str | None
    low: Annotated[float | None, Field(description="least value; null: none")] = None
    high: Annotated[float | None, Field(description="largest value; null: none")] = None
    choices: list[str] = []
    help: str


class MethodView(BaseModel):
    """A method that a model supports; values are the model's settings or the presets."""

    name: str
    summary: str
    paper: str
    steps: int | None
    max_steps: int | None
    nfe: Annotated[int, Field(description="network calls of a window")]
    vjp: Annotated[int, Field(description="backward passes of a window")]
    solver: str
    spacing: str
    eta: float
    solvers: list[str]
    soft: Annotated[bool, Field(description="fills grey parts of a mask in part, by the noise level")]
    settings: list[SettingView]


class Methods(BaseModel):
    """The methods of a model."""

    methods: list[MethodView]


class Limits(BaseModel):
    """Limits of this server."""

    max_bytes: Annotated[int, Field(description="of a request")]
    max_megapixels: Annotated[float, Field(description="of an image, and summed over the samples")]
    max_samples: int
    max_queue: int
    max_steps: int
    lanes: Annotated[int, Field(description="jobs that run at the same time")]
    keep_seconds: Annotated[float, Field(description="for which results are kept")]


class Example(BaseModel):
    """A photograph with a mask."""

    name: str
    title: str
    image: Annotated[str, Field(description="URL")]
    mask: Annotated[str | None, Field(description="URL")]


class Examples(BaseModel):
    """Photographs to try."""

    examples: list[Example]


class MaskView(BaseModel):
    """A mask in black and white."""

    mask: Annotated[str, Field(description="PNG in base64, 8-bit grey, white = fill")]
    notes: list[str]
    warnings: list[str]


class JobView(BaseModel):
    """State of a job."""

    id: str
    state: State
    model: str
    method: str
    steps: Annotated[int | None, Field(description="noise levels; null: the method uses no network")]
    nfe: Annotated[int, Field(description="network calls so far, over all windows and samples")]
    planned: Annotated[
        int, Field(description="network calls of the whole job; a line search (copaint) may exceed them")
    ]
    seconds: Annotated[float, Field(description="computing time of this job alone")]
    position: Annotated[int | None, Field(description="place in the queue, 0 = next")]
    preview: Annotated[int, Field(description="number of previews so far")]
    width: int
    height: int
    samples: int
    error: str | None
    warnings: list[str]
