"""Preferred settings of a checkpoint: file, precedence, and equal results in Python."""

import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from rad.cli import names
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Label
from rad.cli.sample.runtimes.base import complete
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.adapter import AdapterInfo, inherited_sampling
from rad.models.hub.convert import save_merged
from rad.models.load import load_model
from rad.models.settings.preferred import KEYS, NOTHING, Preferred, SizePolicy
from tests.conftest import SIZE, box_hole, random_image

DDIM = Preferred(steps=3, solver="ddim", spacing="trailing", average=2, size_policy="crop", margin=3)
WIDE = Preferred(
    steps=3, size_policy="pyramid", margin=3, size=32, pyramid_coarsest=4, pyramid_strength=0.5, pyramid_steps=2
)

THIN = Preferred(steps=4, solver="ddim", spacing="trailing", thin_steps=1)


def test_keys_are_the_fields_and_policies_those_of_the_options() -> None:
    assert list(KEYS) == [item.name for item in fields(Preferred)]
    assert get_args(SizePolicy) == get_args(names.SizePolicy)


def test_help_texts_have_the_defaults_of_the_pyramid() -> None:
    helps = {item.name: item.metadata["help"] for item in fields(SampleOptions)}
    assert f"default: {Pyramid.strength}, or" in helps["pyramid_strength"]
    assert f"default: {Pyramid.steps}, or" in helps["pyramid_steps"]


@pytest.mark.parametrize(
    ("given", "method", "expected"),
    [
        (NOTHING, "rad", DDIM),
        (NOTHING, "repaint", Preferred(size_policy="crop", margin=3)),
        (Preferred(steps=9), "rad", Preferred(9, "ddim", "trailing", None, None, "crop", 3)),
        (Preferred(steps=9, average=4), "rad", Preferred(9, "ddim", "trailing", None, 4, "crop", 3)),
        (Preferred(solver="ddim"), "rad", Preferred(3, "ddim", None, None, None, "crop", 3)),
        (Preferred(spacing="quad"), "rad", Preferred(3, None, "quad", None, None, "crop", 3)),
        (Preferred(eta=0.0), "rad", Preferred(3, "ddim", "trailing", 0.0, 2, "crop", 3)),
        (Preferred(average=1), "rad", Preferred(3, "ddim", "trailing", None, 1, "crop", 3)),
        (Preferred(size_policy="crop"), "ddnm", Preferred(size_policy="crop", margin=3)),
        (Preferred(size_policy="zoom"), "ddnm", Preferred(size_policy="zoom")),
        (Preferred(margin=0), "ddnm", Preferred(size_policy="crop", margin=0)),
    ],
)
def test_precedence_and_groups(given: Preferred, method: str, expected: Preferred) -> None:
    result = DDIM.complete(given, method=method)
    assert result == expected
    assert DDIM.complete(result, method=method) == expected, "idempotent"
    assert NOTHING.complete(given, method=method) == given


@pytest.mark.parametrize(
    ("given", "call", "expected"),
    [
        (NOTHING, {}, 1),
        (NOTHING, {"strength": 0.5}, None),
        (NOTHING, {"budget": True}, None),
        (NOTHING, {"method": "ddnm"}, None),
        (Preferred(steps=4), {}, None),
        (Preferred(solver="ddim"), {}, None),
        (Preferred(spacing="quad"), {}, None),
        (Preferred(eta=0.5), {}, 1),
        (Preferred(average=2), {}, 1),
        (Preferred(size_policy="crop"), {}, 1),
        (Preferred(steps=4, thin_steps=2), {"budget": True, "strength": 0.5}, 2),
        (Preferred(solver="ddim", thin_steps=2), {"method": "ddnm"}, 2),
    ],
)
def test_steps_of_thin_windows_belong_to_the_whole_sampler(given: Preferred, call, expected: int | None) -> None:
    result = THIN.complete(given, **{"method": "rad", **call})
    assert result.thin_steps == expected
    assert THIN.complete(result, **{"method": "rad", **call}) == result
    assert THIN.at((32, 32), trained=(SIZE, SIZE)).thin_steps == 1
    assert Preferred.read(THIN.content()) == THIN


def test_windows_and_scales_hold_for_every_method_and_lengths_for_one_size() -> None:
    assert WIDE.complete(NOTHING, method="ddnm") == replace(WIDE, steps=None)
    assert WIDE.complete(Preferred(size_policy="zoom"), method="ddnm") == Preferred(size_policy="zoom", size=32)
    steps = WIDE.complete(Preferred(pyramid_steps=9), method="ddnm")
    assert (steps.pyramid_steps, steps.pyramid_strength, steps.pyramid_coarsest) == (9, 0.5, 4)
    trained = (SIZE, SIZE)
    assert WIDE.at(None, trained=trained) == WIDE.at((32, 32), trained=trained) == WIDE
    other = WIDE.at(trained, trained=trained)
    assert other == Preferred(3, size_policy="pyramid", pyramid_strength=0.5, pyramid_steps=2)
    assert DDIM.at(trained, trained=trained) == DDIM
    assert DDIM.at((32, 32), trained=trained).margin is None


def test_a_second_order_solver_of_the_caller_does_not_meet_the_spacing_of_the_checkpoint() -> None:
    rad = METHODS["rad"]()
    schedule = rad.choose(**DDIM.sampler("rad", solver="dpm++2m"))
    assert (schedule.steps, schedule.solver, schedule.spacing, schedule.eta) == (3, "dpm++2m", "logsnr", 0)
    assert rad.choose(**NOTHING.sampler("rad")) == rad.choose()
    for name, kind in METHODS.items():
        if name != "rad":
            assert kind().choose(**DDIM.sampler(name)) == kind().choose()


@pytest.mark.parametrize(
    ("sampling", "part"),
    [
        ([], "sampling is an object of type list; expected an object"),
        ({"step": 3}, "sampling has the unknown key 'step'; allowed are steps, solver"),
        ({"steps": 0}, "sampling.steps is 0; allowed are whole numbers from 1"),
        ({"steps": True}, "sampling.steps is True"),
        ({"steps": None}, "sampling.steps is None"),
        ({"solver": "euler"}, "sampling.solver is 'euler'; allowed are ddpm, ddim, dpm++2m"),
        ({"solver": ["ddim"]}, "sampling.solver is an object of type list"),
        ({"spacing": "quad"}, "sampling.spacing is given without sampling.solver"),
        ({"solver": "ddpm", "eta": float("nan")}, "sampling.eta is nan; allowed are 0 to 1"),
        ({"solver": "dpm++2m", "spacing": "even"}, "solver 'dpm++2m' needs"),
        ({"solver": "ddim", "eta": 1}, "solver 'ddim' allows 0"),
        ({"average": 0.5}, "sampling.average is 0.5"),
        ({"thin_steps": 0}, "sampling.thin_steps is 0; allowed are whole numbers from 1 to 100000"),
        ({"size_policy": "crops"}, "sampling.size_policy is 'crops'; allowed are error, resize, crop, zoom"),
        ({"margin": 4}, "sampling.margin is given without sampling.size_policy"),
        ({"size_policy": "crop", "margin": -1}, "sampling.margin is -1"),
        ({"size": 4}, "sampling.size is 4; allowed are whole numbers from 8"),
        ({"pyramid_steps": 4}, "sampling.pyramid_steps is given without sampling.size_policy"),
        (
            {"size_policy": "crop", "pyramid_steps": 4},
            "sampling.pyramid_steps needs sampling.size_policy 'pyramid', not",
        ),
        ({"size_policy": "pyramid", "pyramid_strength": 1}, "sampling.pyramid_strength is 1; allowed are above 0"),
        ({"size_policy": "pyramid", "pyramid_coarsest": 0}, "sampling.pyramid_coarsest is 0"),
    ],
)
def test_a_bad_value_names_file_and_key(carrying, sampling: object, part: str) -> None:
    folder = carrying(sampling)
    with pytest.raises(ValueError, match="correct this entry or remove it") as caught:
        AdapterInfo.read(folder)
    assert str(caught.value).startswith(f"{folder / 'rad_config.json'}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_keeps_settings_and_has_no_entry_without_them(carrying, adapter: Path, tmp_path: Path) -> None:
    before = (adapter / "rad_config.json").read_text()
    AdapterInfo.read(adapter).write(tmp_path)
    assert (tmp_path / "rad_config.json").read_text() == before
    assert "sampling" not in before
    info = AdapterInfo.read(carrying(DDIM.content()))
    assert info.sampling == DDIM
    info.write(tmp_path)
    assert json.loads((tmp_path / "rad_config.json").read_text())["sampling"] == DDIM.content()
    assert AdapterInfo.read(tmp_path) == info


def test_a_window_size_is_for_pixel_models(carrying) -> None:
    folder = carrying({"size": 32})
    content = json.loads((folder / "rad_config.json").read_text())
    (folder / "rad_config.json").write_text(json.dumps(content | {"kind": "latent"}))
    with pytest.raises(ValueError, match=r"sampling\.size is for models of kind 'pixel', not 'latent'"):
        AdapterInfo.read(folder)


def test_further_training_and_merging_keep_what_makes_sense(carrying, tmp_path: Path) -> None:
    folder = carrying(DDIM.content())
    assert inherited_sampling(folder, process="region_aware", size=(SIZE, SIZE)) == DDIM
    other = inherited_sampling(folder, process="region_aware", size=(32, 32))
    assert (other.steps, other.size_policy, other.margin) == (3, "crop", None)
    assert inherited_sampling(carrying(WIDE.content()), process="region_aware", size=(SIZE, SIZE)) == WIDE
    assert inherited_sampling(folder, process="region_aware", size=(32, 32)).size is None
    carrying(DDIM.content())
    assert inherited_sampling(folder, process="tdpaint", size=(SIZE, SIZE)) == NOTHING
    assert inherited_sampling(tmp_path, process="region_aware", size=(SIZE, SIZE)) == NOTHING
    save_merged(Inpainter.from_pretrained(folder, device="cpu").model, tmp_path / "merged", name="m", card=None)
    assert AdapterInfo.read(tmp_path / "merged").sampling == DDIM


def options(**given: object) -> SampleOptions:
    return SampleOptions(checkpoint="model", image="in", output="out", mask=["box"], **given)  # pyright: ignore[reportArgumentType]


def test_labels_of_the_command_line_have_the_settings_that_hold_for_them() -> None:
    labels = ["rad", "rad@4", "rad@10nfe", "rad,solver=ddpm", "rad@5,average=1", "repaint"]
    completed, found, message = complete(options(method=labels), DDIM)
    assert (completed.size_policy, completed.margin) == ("crop", 3)
    values = [(label.steps, label.solver, label.spacing, label.average) for label in found]
    assert values == [
        (3, "ddim", "trailing", 2),
        (4, "ddim", "trailing", None),
        (None, "ddim", "trailing", None),
        (3, "ddpm", None, None),
        (5, "ddim", "trailing", 1),
        (None, None, None, None),
    ]
    assert [label.text for label in found] == labels
    assert message.startswith(
        "size_policy crop, margin 3; rad with steps 3, solver ddim, spacing trailing, average 2; "
    )
    assert "repaint" not in message
    again, same, _ = complete(completed, DDIM)
    assert (again, same) == (completed, found), "processes complete the options once more"
    completed, (label,), _ = complete(options(steps=4, solver="ddim"), DDIM)
    assert label == Label("rad", "rad")
    assert label.given_average(completed) == 1
    completed, (label,), _ = complete(options(budget_nfe=10), DDIM)
    assert (label.steps, label.solver, label.given_average(completed)) == (None, "ddim", 1)
    completed, (label,), _ = complete(options(budget_nfe=10, average=4), DDIM)
    assert label.given_average(completed) == 4


def test_labels_have_the_steps_of_thin_windows() -> None:
    labels = ["rad", "rad@4", "rad@10nfe", "rad,eta=0", "rad@4,thin_steps=2", "rad,strength=0.5", "repaint"]

    def steps(**given: object) -> list[int | None]:
        completed, found, _ = complete(options(method=labels, **given), THIN)
        return [label.given_thin_steps(completed) for label in found]

    assert steps() == [1, None, None, 1, 2, None, None]
    assert steps(steps=9) == [None, None, None, None, 2, None, None]
    assert steps(thin_steps=3) == [3, 3, 3, 3, 2, None, None]
    completed, found, message = complete(options(method=labels, thin_steps=3), THIN)
    assert [label.ignores_thin_steps(completed) for label in found] == [False] * 5 + [True] * 2
    assert "thin_steps 1" not in message
    assert complete(options(), THIN)[2] == "rad with steps 4, solver ddim, spacing trailing, thin_steps 1"


def test_windows_and_scales_of_the_command_line() -> None:
    completed, _, message = complete(options(pyramid_steps=5), WIDE)
    assert completed.pyramid == Pyramid(4, 0.5, 5)
    assert completed.size == 32
    assert message == (
        "size_policy pyramid, margin 3, size 32, pyramid_coarsest 4, pyramid_strength 0.5; rad with steps 3"
    )
    assert complete(completed, WIDE)[0] == completed
    completed, _, _ = complete(options(size_policy="crop"), WIDE)
    assert (completed.pyramid, completed.margin, completed.size) == (None, None, 32)
    completed, _, _ = complete(options(size_policy="pyramid"), NOTHING)
    assert (completed.pyramid_coarsest, completed.pyramid_strength, completed.pyramid_steps) == (None, 0.65, 6)
    with pytest.raises(ValueError, match="need --size_policy pyramid"):
        complete(options(pyramid_steps=5), DDIM)


def test_without_settings_the_options_have_their_former_defaults() -> None:
    completed, (label,), message = complete(options(), NOTHING)
    assert (completed.size_policy, completed.margin, completed.average) == ("error", None, 1)
    assert (label, message) == (Label("rad", "rad"), "")


def test_the_inpainter_equals_the_same_settings_given(carrying, adapter: Path) -> None:
    preferring, plain = (
        Inpainter.from_pretrained(folder, device="cpu") for folder in (carrying(DDIM.content()), adapter)
    )
    image, hole = random_image(20, 24), box_hole(20, 24, 4, 5, 14, 16)
    result, expected = preferring(image, hole), plain(image, hole, **DDIM.content())  # pyright: ignore[reportArgumentType]
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))
    assert result.nfe == expected.nfe == 3 * 2 * plain.count_windows(hole, size_policy="crop", margin=3)
    assert preferring.count_windows(hole) == plain.count_windows(hole, size_policy="crop", margin=3)
    assert preferring.sampler("rad", solver="dpm++2m").timesteps == plain.sampler("rad", steps=3).timesteps
    assert preferring.sampler("ddnm").timesteps == plain.sampler("ddnm").timesteps
    (canvas,) = Layout.choose((SIZE, SIZE), DDIM, None, None).canvases(image, hole.numpy(), 0, samples=1, average=1)
    short = preferring(image, hole, steps=4, solver="ddim")
    assert short.nfe == canvas.count_calls({"first": 4}), "one sample, not the checkpoint's mean"


def test_the_inpainter_has_the_windows_and_scales_of_the_checkpoint(carrying, adapter: Path) -> None:
    folder = carrying(WIDE.content())
    assert AdapterInfo.read(folder).size == (SIZE, SIZE)
    inpainter = Inpainter.from_pretrained(folder, device="cpu")
    assert inpainter.size == (32, 32)
    small = Inpainter.from_pretrained(folder, device="cpu", size=SIZE)
    assert small.size == (SIZE, SIZE)
    assert (small.model.preferred.margin, small.model.preferred.pyramid_steps) == (None, 2)
    plain = Inpainter.from_pretrained(adapter, device="cpu", size=32)
    hole = box_hole(70, 80, 10, 12, 34, 36)
    given = {"size_policy": "pyramid", "margin": 3, "pyramid": Pyramid(4, 0.5, 2)}
    windows = inpainter.count_windows(hole)
    assert windows == plain.count_windows(hole, **given)  # pyright: ignore[reportArgumentType]
    assert windows != plain.count_windows(hole, size_policy="pyramid", margin=3)


@pytest.mark.slow
def test_thin_windows_have_the_steps_of_the_checkpoint(carrying) -> None:
    inpainter = Inpainter.from_pretrained(carrying(THIN.content()), device="cpu")
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 9, 5)
    assert inpainter.count_windows(hole) == 1
    cases: list[tuple[dict[str, float], int]] = [
        ({}, 1),
        ({"strength": 0.5}, 2),
        ({"steps": 3}, 3),
        ({"thin_steps": 2}, 2),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, calls in cases:
            assert inpainter(image, hole, **given).nfe == calls, given  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_windows_and_scales_of_the_checkpoint_equal_given_ones(carrying, adapter: Path) -> None:
    sampling = WIDE.content() | {"solver": "ddim", "spacing": "trailing"}
    preferring = Inpainter.from_pretrained(carrying(sampling), device="cpu")
    plain = Inpainter.from_pretrained(adapter, device="cpu", size=32)
    image, hole = random_image(70, 80), box_hole(70, 80, 10, 12, 34, 36)
    result = preferring(image, hole)
    expected = plain(
        *(image, hole),
        steps=3,
        solver="ddim",
        spacing="trailing",
        size_policy="pyramid",
        margin=3,
        pyramid=Pyramid(4, 0.5, 2),
    )
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))
    assert result.nfe == expected.nfe


def test_models_for_training_and_export_have_the_size_of_their_images(carrying) -> None:
    folder = carrying(WIDE.content())
    assert load_model(folder.parent / "base", adapter=folder).size == (SIZE, SIZE)


def test_methods_that_cannot_refine_get_windows_of_one_scale(carrying) -> None:
    assert WIDE.starting(refines=True) == WIDE
    assert WIDE.starting(refines=False).content() == {"steps": 3, "size_policy": "crop", "size": 32, "margin": 3}
    inpainter = Inpainter.from_pretrained(carrying(WIDE.content()), device="cpu")
    image, hole = random_image(70, 80), box_hole(70, 80, 10, 12, 34, 36)
    filled = inpainter(image, hole, method="mean").images[0]
    assert np.array_equal(filled, inpainter(image, hole, method="mean", size_policy="crop", margin=3).images[0])
    with pytest.raises(ValueError, match="use size_policy 'crop' or 'zoom'"):
        inpainter(image, hole, method="mean", size_policy="pyramid")
