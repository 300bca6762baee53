"""Options of the inpainter without effect: a warning each, once, also where `rad sample` or the studio has warned already."""

import warnings

import pytest

from rad.cli import main as cli
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.loaded_model import Condition
from rad.studio.schema import InpaintFields
from tests.conftest import SIZE, box_hole, random_image
from tests.studio.server import make_service
from tests.tiny_pipelines import write_pipeline

IMAGE, HOLE = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 4, 9, 10)


@pytest.fixture(scope="module")
def plain(models):
    return Inpainter.from_pretrained(models / "base", device="cpu")


def warned(run):
    """What a call warns about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(each.message) for each in caught]


IGNORE_ETA = [name for name, kind in METHODS.items() if not kind().uses_eta and name != "lama"]  # it needs a file


@pytest.mark.parametrize("name", IGNORE_ETA)
def test_an_eta_that_the_method_does_not_use(plain, name):
    preset = METHODS[name]().preset_eta
    assert warned(lambda: plain.sampler(name, eta=0.7)) == [f"eta has no effect on method {name!r}"]
    assert warned(lambda: plain.sampler(name, eta=preset)) == warned(lambda: plain.sampler(name)) == []


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({}, []),
        ({"steps": 50}, ["steps has no effect on method 'mean'"]),
        ({"method": "replacement", "steps": 2}, []),
        ({"margin": 3}, ["margin=3 has no effect with size_policy 'error': use 'crop', 'zoom' or 'pyramid'"]),
        (
            {"margin": 3, "size_policy": "resize"},
            ["margin=3 has no effect with size_policy 'resize': use 'crop', 'zoom' or 'pyramid'"],
        ),
        ({"margin": 3, "size_policy": "crop"}, []),
        ({"margin": 3, "size_policy": "zoom"}, []),
        ({"mask": "center"}, []),
        (
            {"mask": "center", "mask_dilate": 5, "mask_polarity": "white_is_known", "soft_mask": True},
            [f"{name} has no effect on a generated mask: leave it out" for name in ("mask_polarity", "soft_mask", "mask_dilate")],
        ),
        ({"mask_dilate": 1}, []),
    ],
)  # fmt: skip
def test_options_of_a_call(plain, options, messages):
    options = {"mask": HOLE, "method": "mean", "names": ["a"], **options}
    assert warned(lambda: plain([IMAGE], **options)) == messages


def test_a_condition_of_a_method_without_a_network(tmp_path):
    inpainter = Inpainter.from_pretrained(write_pipeline(tmp_path / "stable", "stable"), device="cpu")
    height, width = inpainter.size
    images, hole = [random_image(height, width)] * 2, box_hole(height, width, 4, 4, 9, 9)
    with pytest.raises(
        ValueError, match="a condition has no effect on method 'mean', which uses no network: leave out"
    ):
        inpainter(images, hole, method="mean", condition=[Condition(), Condition(guidance=2.0)])
    assert inpainter(images, hole, method="mean").nfe == 0


@pytest.mark.parametrize(("method", "steps"), [("mean", "--steps 50 "), ("mean@50", "")])
def test_rad_sample_warns_once(base, tmp_path, monkeypatch, capsys, method, steps):
    monkeypatch.chdir(tmp_path)
    IMAGE.save("in.png")
    words = f"--checkpoint {base} --image in.png --mask center --output out --device cpu --size_policy resize --method {method}"
    useless = f"--margin 3 {steps}--eta 0.5 --mask_dilate 5 --soft_mask"
    assert warned(lambda: cli.sample([*words.split(), *useless.split()])) == []
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert lines == [
        "warning: --margin has no effect without --size_policy crop, zoom or pyramid",
        "warning: --soft_mask, --mask_dilate has no effect on the generator center",
        f"warning: --eta has no effect on {method}",
        f"warning: --steps has no effect on {method}",
    ]


def test_the_studio_warns_its_client_alone(base):
    service = make_service(base)
    service.queue.close()
    filler, hole = service.fillers["tiny"], HOLE[0].numpy()
    fields = InpaintFields(method="mean", steps=50, eta=0.5, margin=3, size_policy="resize", average=1)
    plans = []
    assert warned(lambda: plans.append(filler.plan(fields, hole, rate=lambda: 1.0, most_windows=9))) == []
    assert plans[0].warnings == [
        "margin has no effect with size_policy resize",
        "eta has no effect on mean",
        "steps has no effect on mean",
    ]
    assert warned(lambda: filler.fill(fields, plans[0], IMAGE, hole, lambda progress: None)) == []
