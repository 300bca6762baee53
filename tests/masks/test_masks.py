"""Masks: the Perlin distribution, exact counts, polarity of every shape, files."""

import io
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from noise import pnoise2
from PIL import Image
from scipy import ndimage, stats

from rad.masks import MaskGenerator
from rad.masks.files import read_mask, same_mask, write_mask
from rad.masks.perlin import Perlin, Pnoise, perlin_noise, threshold_by_rank
from rad.masks.reading.format import MaskFormat
from rad.masks.reading.hole import looks_inverted
from rad.masks.shapes import MASKS, Blobs, Box, CenterBox, Expand, Lettering, RandomPixels, Strokes, make

REPAINT = Path(__file__).resolve().parents[3] / "shared" / "data" / "repaint_keep_masks.zip"
needs_repaint = pytest.mark.skipif(not REPAINT.exists(), reason="the masks of RePaint are not here")


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + index) for index in range(count)]


def scalar_perlin(scale, angle, height, width):
    """Perlin noise as in the definition, one pixel and one corner at a time, in float64."""
    plane = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row / scale, column / scale
            top, left = math.floor(y), math.floor(x)
            for i in (0, 1):
                for j in (0, 1):
                    theta = float(angle[top + i, left + j])
                    dy, dx = y - top - i, x - left - j
                    dot = math.cos(theta) * dx + math.sin(theta) * dy
                    fade = [6 * abs(d) ** 5 - 15 * abs(d) ** 4 + 10 * abs(d) ** 3 for d in (dy, dx)]
                    plane[row, column] += (1 - fade[0]) * (1 - fade[1]) * dot
    return math.sqrt(2) * plane


def angles_for(scale, height, width, seed=0):
    nodes = (math.ceil(height / scale) + 1, math.ceil(width / scale) + 1)
    return 2 * math.pi * torch.rand(nodes, generator=torch.Generator().manual_seed(seed))


# --- all generators ---


@pytest.mark.parametrize("name", MASKS)
def test_a_batch_equals_its_images_drawn_one_by_one(name):
    batch = make(name)(generators(5), 33, 46)
    singles = torch.cat([make(name)([generator], 33, 46) for generator in generators(5)])
    assert batch.shape == (5, 1, 33, 46)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, singles)
    assert set(batch.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["box", "extreme", "pixels", "wide", "thin", "blobs", "perlin", "lettering"])
def test_seeds_decide_and_the_global_generator_does_not(name):
    torch.manual_seed(1)
    first = make(name)(generators(4), 64, 64)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(make(name)(generators(4), 64, 64), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(make(name)(generators(4, seed=1), 64, 64), first)
    assert len({hole.numpy().tobytes() for hole in first}) == 4


def test_make_names_the_masks():
    assert all(isinstance(make(name), MaskGenerator) for name in MASKS)
    with pytest.raises(ValueError, match=r"'oval'.*box, extreme"):
        make("oval")


class Holder:
    def __init__(self, masks: MaskGenerator):
        self.masks = masks


@pytest.mark.parametrize(
    ("path", "settings", "expected"),
    [
        (
            "perlin.Perlin",
            {"area_range": [0.2, 0.6], "scale_range": [8, None]},
            Perlin((0.2, 0.6), (8.0, None)),
        ),
        ("perlin.Pnoise", {"octaves": 2}, Pnoise(octaves=2)),
        ("shapes.Strokes", {"strokes": [1, 2]}, Strokes(strokes=(1, 2))),
        ("shapes.Blobs", {"blobs": [2, 2]}, Blobs(blobs=(2, 2))),
        ("shapes.Half", {}, make("half")),
    ],
)
def test_yaml_makes_a_generator(path, settings, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--masks", type=MaskGenerator)
    config = parser.parse_object({"masks": {"class_path": f"rad.masks.{path}", "init_args": settings}})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # new name, old name
    assert instantiate(config).masks == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Perlin(area_range=(0.6, 0.4)), r"area_range=\(0.6, 0.4\).*0 <= low"),
        (lambda: Perlin(scale_range=(0.5, 9.0)), r"scale_range=\(0.5, 9.0\).*1 <= low"),
        (lambda: Perlin(scale_range=(65.0, None))(generators(1), 32, 64), "above 64"),
        (lambda: Perlin(scale_range=(float("nan"), None)), "scale_range=.nan"),
        (lambda: Perlin(scale_range=(2.0, float("inf"))), "scale_range=.*inf"),
        (lambda: Pnoise(octaves=0), "octaves=0"),
        (lambda: Pnoise(octaves=33), "octaves=33: give 1 to 32"),
        (lambda: Box(side=0.0), "side=0.0"),
        (lambda: Expand(keep=1.5), "keep=1.5"),
        (lambda: RandomPixels(fraction=-0.1), "fraction=-0.1"),
        (lambda: Strokes(width=(9, 3)), r"width=\(9, 3\)"),
        (lambda: Strokes(strokes=(1, 10**6)), "strokes=.*<= 1000"),
        (lambda: Strokes(box_margin=200), "box_margin=200"),
        (lambda: Strokes(box_share=1.0, max_area=0.001)(generators(1), 64, 64), "max_area=0.001"),
        (lambda: Blobs(blobs=(0, 2)), r"blobs=\(0, 2\)"),
        (lambda: Blobs(blobs=(1, 10**6)), "blobs=.*<= 1000"),
        (lambda: Blobs(radius=(0.3, 0.2)), r"radius=\(0.3, 0.2\)"),
        (lambda: Blobs(irregularity=1.5), "irregularity=1.5"),
        (lambda: Blobs(max_area=0.0), "max_area=0.0"),
        (lambda: Blobs(radius=(0.5, 0.5), max_area=0.001)(generators(1), 64, 64), "max_area=0.001"),
        (lambda: Lettering(lines=0), "lines=0"),
        (lambda: Lettering(scratches=10**6), "scratches=1000000.*at most 1000"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- Perlin ---


@pytest.mark.parametrize("scale", [1.3, 4.0, 5.7, 19.0, 40.0])
def test_noise_equals_the_definition(scale):
    angles = angles_for(scale, 19, 26)
    noise = perlin_noise(scale, angles, height=19, width=26)
    np.testing.assert_allclose(noise, scalar_perlin(scale, angles, 19, 26), atol=1e-12)


def test_noise_is_zero_on_the_nodes_and_within_one():
    noise = perlin_noise(8.0, angles_for(8, 64, 64), height=64, width=64)
    assert noise[::8, ::8].abs().max() == 0
    assert 0.3 < noise.abs().max() <= 1


def test_one_cell_is_smooth():
    side = 64
    noise = perlin_noise(side, angles_for(side, side, side), height=side, width=side)
    assert noise[0, 0] == 0
    # A corner's product changes by at most |g| + max|fade'| |d| a cell; fade' is at most 15/8, |d| sqrt(2).
    bound = math.sqrt(2) * (1 + 15 / 8 * math.sqrt(2)) / side
    assert noise.diff(dim=0).abs().max() < bound
    assert noise.diff(dim=1).abs().max() < bound
    assert noise.std() > 0.05


def test_the_hole_is_the_low_side_of_the_noise():
    """The same draws by hand, in the documented order: scale, angles, count."""
    height, width = 24, 40
    for generator, again in zip(generators(20), generators(20), strict=True):
        hole = Perlin()([generator], height, width)[0, 0].bool().numpy()
        scale = 1 + (width - 1) * torch.rand((), generator=again).item()
        nodes = (math.ceil(height / scale) + 1, math.ceil(width / scale) + 1)
        noise = scalar_perlin(scale, 2 * math.pi * torch.rand(nodes, generator=again), height, width)
        count = int(torch.randint(height * width + 1, (), generator=again))
        assert hole.sum() == count
        if 0 < count < height * width:
            assert noise[hole].max() <= noise[~hole].min() + 1e-12


def test_counts_are_exact_with_ties_and_at_both_ends():
    noise = torch.rand(6, 9, 11, generator=torch.Generator().manual_seed(0))
    noise[3] = 0.0
    noise[4] = (4 * noise[4]).round()
    counts = torch.tensor([0, 99, 1, 37, 50, 98])
    holes = threshold_by_rank(noise, counts)
    assert holes.shape == (6, 1, 9, 11)
    assert torch.equal(holes.sum((1, 2, 3)).long(), counts)
    assert torch.equal(holes[3].flatten(), (torch.arange(99) < 37).float())
    assert noise[4][holes[4, 0] == 1].max() <= noise[4][holes[4, 0] == 0].min()
    assert holes[2].argmax() == noise[2].argmin()


def test_the_hole_share_is_uniform():
    shares = Perlin()(generators(2000), 16, 16).mean((1, 2, 3))
    # A share is a multiple of 1/256; half a step of jitter makes the distribution continuous.
    jitter = torch.rand(2000, generator=torch.Generator().manual_seed(7))
    pixels = 256 * shares
    assert torch.equal(pixels, pixels.round())
    assert stats.kstest(((pixels + jitter) / 257).numpy(), "uniform").pvalue > 0.01


def test_area_range_bounds_the_share():
    for low, high in [(0.0, 0.0), (1.0, 1.0), (0.25, 0.5), (0.1, 0.101), (0.2503, 0.2503)]:
        shares = Perlin(area_range=(low, high))(generators(200), 20, 30).mean((1, 2, 3)).double()
        assert shares.min() >= low - 1e-6
        assert shares.max() <= max(high, low + 1 / 600) + 1e-6
    shares = Perlin(area_range=(0.25, 0.5))(generators(200), 20, 30).mean((1, 2, 3))
    assert shares.min() < 0.27
    assert shares.max() > 0.48


@pytest.mark.parametrize("kind", [Perlin, Pnoise])
def test_scale_range_bounds_the_size_of_the_shapes(kind):
    def boundary(scale_range):
        hole = kind(area_range=(0.5, 0.5), scale_range=scale_range)(generators(20), 48, 48)
        return (hole.diff(dim=2).abs().mean() + hole.diff(dim=3).abs().mean()).item()

    fine, middle, coarse = boundary((3.0, 4.0)), boundary((12.0, 16.0)), boundary((48.0, 64.0))
    # The length of the boundary goes as 1 / cell while the image holds many cells, more slowly afterwards.
    assert 3 < fine / middle < 5
    assert 1.5 < middle / coarse < 5


def test_default_scales_are_those_of_the_longer_side():
    """Half of the masks have less than two cells along the longer side: few boundaries there."""
    hole = Perlin(area_range=(0.5, 0.5))(generators(200), 16, 128)
    crossings = hole.diff(dim=3).abs().sum((1, 3)).mean(1)
    short = Perlin(area_range=(0.5, 0.5), scale_range=(1.0, 16.0))(generators(200), 16, 128)
    assert crossings.median() < 4
    assert short.diff(dim=3).abs().sum((1, 3)).mean(1).median() > 8


def test_pnoise_is_the_low_side_of_the_package():
    """The same draws by hand, in the documented order: scale, place, count."""
    holes = Pnoise(octaves=2)(generators(6), 24, 40)[:, 0].bool().numpy()
    singles = [Pnoise(octaves=2)([generator], 24, 40)[0, 0].bool().numpy() for generator in generators(6)]
    for generator, hole, single in zip(generators(6), holes, singles, strict=True):
        scale = 1 + 39 * torch.rand((), generator=generator).item()
        top, left = (256 * torch.rand((), generator=generator).item() for _ in range(2))
        noise = np.array(
            [[pnoise2(left + x / scale, top + y / scale, octaves=2) for x in range(40)] for y in range(24)]
        )
        assert hole.sum() == int(torch.randint(961, (), generator=generator))
        assert noise[hole].max() <= noise[~hole].min() + 1e-6
        assert np.array_equal(hole, single)


# --- shapes: 1 = fill ---


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("box", 1 / 4),
        ("extreme", 3 / 4),
        ("center", 1 / 4),
        ("half", 1 / 2),
        ("expand", 15 / 16),
        ("lines", 1 / 2),
        ("superres", 3 / 4),
        ("pixels", round(0.92 * 32 * 64) / (32 * 64)),
    ],
)
def test_share_of_the_hole(name, share):
    assert torch.equal(make(name)(generators(5), 32, 64).mean((1, 2, 3)), torch.full((5,), share))


def test_boxes_reach_every_place_and_stay_boxes():
    holes = Box()(generators(400), 8, 6)[:, 0]
    corners = {tuple(hole.nonzero()[0].tolist()) for hole in holes}
    assert corners == {(top, left) for top in range(5) for left in range(4)}
    for hole in holes[:20]:
        top, left = hole.nonzero()[0].tolist()
        assert hole[top : top + 4, left : left + 3].all()
    assert torch.equal(make("extreme")(generators(3), 8, 6), 1 - Box()(generators(3), 8, 6))


def test_places_of_the_fixed_shapes():
    half = make("half")(generators(1), 4, 7)[0, 0]
    assert half[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert make("lines")(generators(1), 4, 2)[0, 0, :, 0].tolist() == [1, 0, 1, 0]
    assert make("superres")(generators(1), 2, 4)[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0]]
    assert CenterBox()(generators(1), 4, 8)[0, 0].nonzero().tolist() == [
        [row, column] for row in (1, 2) for column in (2, 3, 4, 5)
    ]
    assert (1 - make("expand")(generators(1), 4, 8)[0, 0]).nonzero().tolist() == [[1, 3], [1, 4]]


@needs_repaint
@pytest.mark.parametrize(
    ("name", "folder"), [("half", "genhalf"), ("expand", "ex64"), ("lines", "ev2li"), ("superres", "nn2")]
)
def test_fixed_shapes_equal_the_masks_of_repaint(name, folder):
    assert torch.equal(make(name)(generators(1), 256, 256)[0], repaint(f"{folder}/000000.png"))


@pytest.mark.parametrize(
    ("name", "share", "radius", "parts", "outline"),
    [("thick", 0.241, 29.98, 1.30, 2.53), ("thin", 0.308, 6.98, 6.92, 14.32)],
)
def test_strokes_look_like_the_masks_of_repaint(name, share, radius, parts, outline):
    """The numbers are those of the 100 thick and the 100 thin masks published with RePaint."""
    holes = make(name)(generators(100), 256, 256)[:, 0]
    depths = [ndimage.distance_transform_edt(np.pad(hole, 1)) for hole in holes.numpy()]
    assert holes.mean((1, 2)).max() <= 0.5
    assert holes.mean((1, 2)).median() == pytest.approx(share, abs=0.04)
    assert np.mean([np.percentile(depth[depth > 0], 90) for depth in depths]) == pytest.approx(radius, rel=0.2)
    assert np.mean([ndimage.label(hole)[1] for hole in holes]) == pytest.approx(parts, rel=0.25)
    edges = holes.diff(dim=1).abs().sum() + holes.diff(dim=2).abs().sum()
    assert edges / (100 * 256) == pytest.approx(outline, rel=0.15)
    small = make(name)(generators(100), 64, 64)
    assert small.mean((1, 2, 3)).median() == pytest.approx(share, abs=0.06)


def test_a_stroke_is_as_wide_as_asked_and_has_round_ends():
    stroke = Strokes(strokes=(1, 1), width=(20, 20), length=(40, 40), box_share=0.0)
    # Away from the border, which cuts strokes.
    holes = np.pad(stroke(generators(20), 256, 256)[:, 0].numpy(), ((0, 0), (20, 20), (20, 20)), mode="edge")
    y, x = np.mgrid[-8:9, -8:9]
    disc = y**2 + x**2 <= 64
    fits = [ndimage.binary_opening(hole, disc).sum() for hole in holes]
    # Discs that fit inside fill a stroke with round ends; they would leave the corners of flat ends.
    assert sum(fits) / holes.sum() > 0.97
    # Where no two segments overlap, the middle is half a width away from the outside.
    assert min(ndimage.distance_transform_edt(hole).max() for hole in holes) == pytest.approx(10.5, abs=1)


def test_masks_of_boxes_keep_the_margin():
    holes = Strokes(box_share=1.0)(generators(50), 256, 256)[:, 0]
    margin = torch.ones(256, 256, dtype=torch.bool)
    margin[10:-10, 10:-10] = False
    assert holes[:, margin].sum() == 0
    singles = Strokes(box_share=1.0, boxes=(1, 1))(generators(50), 256, 256)[:, 0]
    for hole in singles:
        rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
        assert hole.sum() == rows * columns
        assert 30 <= rows <= 149
        assert 30 <= columns <= 149


def test_lettering_covers_the_image_with_small_parts():
    for height, width in [(256, 256), (64, 64), (96, 240)]:
        holes = make("lettering")(generators(5), height, width)
        shares = holes.mean((1, 2, 3))
        assert shares.min() > 0.1
        assert shares.max() < 0.35
        quarters = torch.nn.functional.adaptive_avg_pool2d(holes, 4)
        assert quarters.min() > 0.01
    assert max(ndimage.label(hole)[1] for hole in make("lettering")(generators(5), 256, 256)[:, 0]) > 20
    plain = Lettering(scratches=0)(generators(3), 128, 128)
    assert (Lettering(scratches=20)(generators(3), 128, 128) - plain).min() == 0


# --- files ---


SOFT = MaskFormat(soft=True)


def repaint(name, **settings):
    with zipfile.ZipFile(REPAINT) as archive:
        file = io.BytesIO(archive.read(f"gt_keep_masks/{name}"))
    return read_mask(file, MaskFormat(**{"polarity": "white_is_known", **settings}))


def saved(image, tmp_path, name="mask.png"):
    image.save(tmp_path / name)
    return tmp_path / name


def test_a_written_mask_comes_back(tmp_path):
    hole = torch.arange(256).view(1, 16, 16) / 255
    write_mask(tmp_path / "mask.png", hole)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")).ravel(), np.arange(256))
    assert torch.equal(read_mask(tmp_path / "mask.png", SOFT), hole)
    assert torch.equal(read_mask(str(tmp_path / "mask.png"), SOFT, size=(16, 16)), hole)
    with open(tmp_path / "mask.png", "rb") as file:
        assert torch.equal(read_mask(file, SOFT), hole)
    write_mask(tmp_path / "soft.png", torch.tensor([[[0.4, 0.499, 0.9985]]]))
    assert np.asarray(Image.open(tmp_path / "soft.png")).tolist() == [[102, 127, 255]]
    flipped = read_mask(Image.open(tmp_path / "mask.png"), MaskFormat(polarity="white_is_known", soft=True))
    assert torch.equal(flipped, (255 - torch.arange(256)).view(1, 16, 16) / 255)


@pytest.mark.parametrize(
    ("path", "hole", "message"),
    [
        ("mask.jpg", torch.zeros(1, 2, 2), r"mask\.jpg.*PNG"),
        ("mask.png", torch.zeros(3, 2, 2), r"\(1,H,W\).*\(3, 2, 2\)"),
        ("mask.png", torch.full((1, 2, 2), 255.0), r"\[0,1\].*255"),
        ("mask.png", torch.full((1, 2, 2), float("nan")), r"\[0,1\]"),
    ],
)
def test_a_tensor_that_is_no_hole_is_not_written(tmp_path, path, hole, message):
    with pytest.raises(ValueError, match=message):
        write_mask(tmp_path / path, hole)
    assert not list(tmp_path.iterdir())


def test_a_mask_that_is_there_is_whole_and_can_be_compared(tmp_path, monkeypatch):
    hole = torch.tensor([[[0.0, 1.0, 0.4]]])
    path = tmp_path / "new" / "mask.png"
    write_mask(path, hole)
    assert same_mask(path, hole)
    assert not same_mask(path, 1 - hole)
    assert not same_mask(path, hole[:, :, :2])
    before = path.read_bytes()

    def fails(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        write_mask(path, 1 - hole)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_modes_of_images(tmp_path):
    grey = np.array([[0, 255, 51], [102, 0, 255]], dtype=np.uint8)
    expected = torch.from_numpy(grey / 255).float()[None]
    grey_levels = MaskFormat(channel="grey", soft=True)
    image = Image.fromarray(grey)
    colour = image.convert("RGB")
    palette = Image.fromarray(np.array([[0, 1, 2], [3, 0, 1]], dtype=np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255, 51, 51, 51, 102, 102, 102])
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.fromarray(255 - grey))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    for index, variant in enumerate([image, colour, palette, transparent, sixteen]):
        assert torch.equal(read_mask(variant, grey_levels), expected)
        assert torch.equal(read_mask(saved(variant, tmp_path, f"{index}.png"), grey_levels), expected)
    alpha = MaskFormat(channel="alpha", soft=True)
    assert torch.equal(read_mask(transparent, alpha), 1 - expected)
    assert torch.equal(read_mask(transparent, replace(alpha, polarity="white_is_known")), expected)
    one_bit = saved(Image.fromarray(grey > 100), tmp_path, "bits.png")
    assert torch.equal(read_mask(one_bit), (expected > 0.39).float())


def test_a_rotated_photograph_of_a_mask_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by a quarter
    image = Image.fromarray(np.array([[255, 0, 0], [255, 0, 0]], dtype=np.uint8))
    image.save(tmp_path / "mask.png", exif=exif)
    assert read_mask(tmp_path / "mask.png")[0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_another_size_names_both_sizes_and_the_file(tmp_path):
    path = saved(Image.new("L", (30, 20)), tmp_path, "small.png")
    with pytest.raises(ValueError, match=r"small\.png.*30x20.*60x40") as caught:
        read_mask(path, size=(40, 60))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    good = saved(Image.effect_noise((64, 64), 50), tmp_path, "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "header.png").write_bytes(good[:20])
    for name in ("text.png", "empty.png", "cut.png", "header.png"):
        with pytest.raises(ValueError, match=name):
            read_mask(tmp_path / name)
    with pytest.raises(ValueError, match="not a readable image"):
        read_mask(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_mask(tmp_path / "missing.png")


def test_inverted_looks():
    spot = CenterBox(side=0.3)(generators(1), 32, 32)[0, 0].numpy()
    assert looks_inverted(1 - spot)
    assert not looks_inverted(spot)
    assert not looks_inverted(np.zeros((32, 32)))
    assert not looks_inverted(np.ones((32, 32)))
    assert not looks_inverted(1 - CenterBox(side=0.9)(generators(1), 32, 32)[0, 0].numpy())
    for name in ("half", "lines", "superres", "pixels", "thick", "thin", "blobs", "lettering"):
        assert not looks_inverted(make(name)(generators(1), 64, 64)[0, 0].numpy())


@needs_repaint
def test_inverted_looks_of_the_masks_of_repaint():
    thick = [f"thick/{index:06d}.png" for index in range(0, 100, 5)]
    thin = [f"thin/{index:06d}.png" for index in range(0, 100, 5)]
    right = ["face/000000.png", "genhalf/000000.png", "nn2/000000.png", "ev2li/000000.png", *thick, *thin]
    assert not any(looks_inverted(repaint(name)[0].numpy()) for name in right)
    assert looks_inverted(repaint("face/000000.png", polarity="white_is_fill")[0].numpy())
    assert sum(looks_inverted(repaint(name, polarity="white_is_fill")[0].numpy()) for name in thick) > 10
    # Outpainting looks like a mistake.
    assert looks_inverted(repaint("ex64/000000.png")[0].numpy())


def test_the_share_of_random_pixels_may_be_drawn():
    holes = RandomPixels(fraction=(0.2, 0.6))([torch.Generator().manual_seed(n) for n in range(64)], 20, 20)
    shares = holes.mean(dim=(1, 2, 3))
    assert 0.2 <= shares.min() < 0.25
    assert 0.55 < shares.max() <= 0.6
    assert shares.mean() == pytest.approx(0.4, abs=3 * 0.4 / 12**0.5 / 8)
    neighbours = (holes[:, :, :, 1:] == holes[:, :, :, :-1]).float().mean(dim=(1, 2, 3))
    expected = shares**2 + (1 - shares) ** 2
    torch.testing.assert_close(neighbours.mean(), expected.mean(), atol=0.02, rtol=0)
    for wrong in ((0.6, 0.2), (0.0, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="fraction"):
            RandomPixels(fraction=wrong)
