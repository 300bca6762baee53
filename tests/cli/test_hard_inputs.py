"""sample.py on images of every kind: tiny and huge, with colour profiles, damaged, malicious, thousands of them."""

import os
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from rad.cli import main as cli
from rad.cli.sample import record
from rad.evaluation import run_log
from rad.images.codecs import open_image
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.filling import WindowFiller
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import main_names, make
from rad.models.loaded_model import PLAIN
from tests.conftest import SIZE, box_hole, random_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()


@pytest.fixture
def sample(adapter, capsys):
    """sample.py in this process: (exit code, lines of stdout, lines of stderr)."""

    def call(*arguments, **options):
        named = {"checkpoint": adapter, "image": "in", "mask": "masks", "output": "out", "steps": 1, **options}
        code = cli.sample([*(word for name, value in named.items() for word in (f"--{name}", str(value))), *arguments])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return call


def save_mask(name, hole):
    Image.fromarray(np.uint8(255 * hole[0].numpy())).save(f"masks/{name}.png")


HOLE = box_hole(SIZE, SIZE, 3, 4, 11, 12)
KNOWN = (HOLE[0] == 0).numpy()


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["crop", "resize"])
def test_images_of_one_row_or_column_or_pixel(sample, policy):
    sizes = {"dot": (1, 1), "row": (1, 3 * SIZE), "column": (3 * SIZE, 1), "known": (1, 1)}
    for name, size in sizes.items():
        random_image(*size).save(f"in/{name}.png")
        hole = torch.zeros(1, *size)
        hole.flatten()[: 0 if name == "known" else -(-hole.numel() // 2)] = 1
        save_mask(name, hole)
    code, out, err = sample("--method", "rad", "mean", "--raw", "--save_mask", size_policy=policy)
    assert code == 0, err
    for name, size in sizes.items():
        given, count = np.asarray(Image.open(f"in/{name}.png")), -(-size[0] * size[1] // 2)
        hole = np.arange(size[0] * size[1]).reshape(size) < (0 if name == "known" else count)
        for method in ("rad", "mean"):
            result, raw = (np.asarray(Image.open(f"out/{method}/{name}{end}.png")) for end in ("", "-raw"))
            assert result.shape == given.shape
            assert np.array_equal(result[~hole], given[~hole])
            assert np.array_equal(result[hole], raw[hole])
            assert name == "known" or (result[hole] != given[hole]).any()
        assert np.array_equal(np.asarray(Image.open(f"out/rad/{name}-mask.png")), 255 * hole.astype(np.uint8))
    assert out[-1] == "out/methods.png"


def test_an_image_of_one_pixel_does_not_fit_a_model(sample):
    random_image(1, 1).save("in/dot.png")
    save_mask("dot", torch.ones(1, 1, 1))
    code, out, err = sample()
    assert (code, out) == (2, [])
    assert err[0].startswith("failed: in/dot.png: the image is 1x1 and the model takes 16x16: use size_policy 'crop'")


@pytest.mark.parametrize("name", main_names())
def test_mask_generators_accept_every_size_or_refuse_it(name):
    for size in ((1, 1), (1, 9), (9, 1), (2, 2)):
        try:
            hole = make(name)([torch.Generator().manual_seed(0)], *size)
        except ValueError as error:
            assert name in ("wide", "thin", "blobs"), "those that draw again what covers more than half"
            assert f"of {size[0]}x{size[1]} were all larger" in str(error)  # noqa: PT017
            continue
        assert hole.shape == (1, 1, *size)
        assert ((hole == 0) | (hole == 1)).all()


def spots(height, width):
    """In the corners, in the middle, and a line."""
    hole = torch.zeros(1, height, width)
    hole[:, height // 2 : height // 2 + 9, width // 2 : width // 2 + 9] = 1
    hole[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 1
    hole[:, height // 3, width // 3 : width // 3 + 40] = 1
    return hole


def test_of_a_large_image_only_windows_around_holes_are_touched(adapter):
    """What is 8 bits stays 8 bits, and samples share it; without margin the line needs three windows."""
    rad, size = Inpainter.from_pretrained(adapter), (600, 800)
    hole, image = spots(*size), random_image(*size)
    canvases = Layout(rad.size, "crop", 0).canvases(image, hole.numpy(), "x", PLAIN, samples=3)
    assert [len(canvas.windows) for canvas in canvases] == [8, 8, 8]
    assert {canvas.pixels.dtype for canvas in canvases} == {np.dtype(np.uint8)}
    assert len({id(canvas.pixels) for canvas in canvases}) == len({id(canvas.hole) for canvas in canvases}) == 1
    result = rad(image, hole, steps=1, size_policy="crop", margin=0, num_samples=2, seed=3)
    near = np.zeros(size, bool)
    for window in canvases[0].windows:
        near[window.slices] = True
    raw, given, open_pixels = np.asarray(result.raw[1]), np.asarray(image), hole[0].numpy() > 0
    assert near.mean() < 0.01
    assert np.array_equal(raw[~near], given[~near])
    assert (raw[open_pixels] != given[open_pixels]).mean() > 0.9
    assert np.array_equal(np.asarray(result.images[1])[~open_pixels], given[~open_pixels])
    assert (raw != np.asarray(result.raw[0])).any()


@pytest.mark.slow
def test_a_photograph_of_48_megapixels(adapter):
    """Two samples of it take about 1.5 GB beside the libraries; floats of all their pixels would take 3 GB more."""
    random_image(6, 8).resize((8000, 6000), Image.Resampling.NEAREST).save("in/a.jpg")  # quickly compressed
    save_mask("a", spots(6000, 8000))
    script = (
        "import resource, sys, rad.cli.main, rad.inpainting.inpainter, skimage.measure\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "code = rad.cli.main.sample(sys.argv[1:])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
        "sys.exit(code)\n"
    )
    words = (
        "--image in --mask masks --output out --size_policy crop --steps 1 --num_samples 2 --device cpu --checkpoint"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words.split(), str(adapter)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    print(done.stdout)
    assert int(done.stdout.splitlines()[-1]) < 2200, "MiB"
    given, filled = (np.asarray(Image.open(name)) for name in ("in/a.jpg", "out/a-1.png"))
    hole = spots(6000, 8000)[0].numpy() > 0
    assert np.array_equal(given[~hole], filled[~hole])


# ---- kinds of files ------------------------------------------------------------------------------


def ink():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    return Image.fromarray(pixels, mode="CMYK"), "x.jpg", {}


def clear_palette():
    return random_image(SIZE, SIZE).quantize(16), "x.png", {"transparency": bytes(range(0, 256, 16))}


def grey_with_alpha():
    image = random_image(SIZE, SIZE).convert("LA")
    image.putalpha(random_image(SIZE, SIZE, seed=1).convert("L"))
    return image, "x.png", {}


def animation():
    frames = [random_image(SIZE, SIZE, seed=seed).quantize(64) for seed in (1, 2)]
    return frames[0], "x.gif", {"save_all": True, "append_images": frames[1:], "duration": 50}


@pytest.mark.parametrize("kind", [ink, clear_palette, grey_with_alpha, animation])
def test_every_kind_of_file_is_read_as_rgb_and_keeps_known_pixels(sample, kind):
    image, name, options = kind()
    image.save(f"in/{name}", **options)
    save_mask("x", HOLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, _, err = sample("--raw")
    assert code == 0, err
    with Image.open("out/x.png") as result:
        assert (result.mode, result.format, getattr(result, "n_frames", 1)) == ("RGB", "PNG", 1)
        assert np.array_equal(np.asarray(result)[KNOWN], np.asarray(open_image(f"in/{name}"))[KNOWN])
    first = np.asarray(image.convert("RGB"))
    assert np.abs(np.asarray(open_image(f"in/{name}")).astype(int) - first).mean() < (30 if name == "x.jpg" else 1)


def test_float_pixels_are_refused(sample):
    Image.fromarray(np.random.default_rng(0).random((SIZE, SIZE), np.float32)).save("in/x.tif")
    save_mask("x", HOLE)
    code, out, err = sample()
    assert (code, out) == (2, [])
    assert "in/x.tif: float pixels have no agreed range" in err[0]


# ---- colours -------------------------------------------------------------------------------------


def made_profile(space, connection, tags):
    """A colour profile of version 2, with the tags that every one has."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + white,
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4xI4s4s4s12x4s", 128 + len(table) + len(body), 0x02400000, b"prtr", space, connection, b"acsp"
    )
    return head.ljust(68, b"\0") + white.ljust(60, b"\0") + table + body


def linear_grey():
    """Grey without gamma: the middle of 8 bits is half of the light."""
    return made_profile(b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + bytes(4)})


def green_ink():
    """A CMYK profile: no ink is white, any full ink a middle green (L* 60 %, a* -48)."""
    same, one = bytes(range(256)), 65536
    table = b"".join(bytes([153, 80, 128] if inks else [255, 128, 128]) for inks in range(16))
    head = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, one)
    return made_profile(b"CMYK", b"Lab ", {b"A2B0": head + 4 * same + table + 3 * same})


def test_an_rgb_profile_stays_with_the_pixels(sample, adapter):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = ("RGB", "RGBA", "P", "L")
    for kind in kinds:
        random_image(SIZE, SIZE).convert(kind).save(f"in/{kind}.png", icc_profile=profile)
        save_mask(kind, HOLE)
    assert sample("--raw")[0] == 0
    for kind in kinds:
        for end in ("", "-raw"):
            with Image.open(f"out/{kind}{end}.png") as result:
                assert result.info["icc_profile"] == profile
        known = np.asarray(Image.open(f"in/{kind}.png").convert("RGB"))[KNOWN]
        assert np.array_equal(np.asarray(Image.open(f"out/{kind}.png"))[KNOWN], known)
    with Image.open("in/RGBA.png") as image:
        (filled,) = Inpainter.from_pretrained(adapter)(image, HOLE, steps=1).images
    filled.save("again.png")
    with Image.open("again.png") as result:
        assert result.info["icc_profile"] == profile


def test_grey_and_ink_with_profiles_become_srgb(sample):
    grey = Image.new("L", (SIZE, SIZE), 128)
    grey.putpixel((0, 0), 0)
    grey.save("in/grey.png", icc_profile=linear_grey())
    Image.fromarray(np.full((SIZE, SIZE), 128 * 257, np.uint16)).save("in/deep.png", icc_profile=linear_grey())
    Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0)).save("in/ink.tif", icc_profile=green_ink())
    for name in ("grey", "deep", "ink"):
        save_mask(name, HOLE)
    assert sample()[0] == 0
    found = {}
    for name in ("grey", "deep", "ink"):
        with Image.open(f"out/{name}.png") as result:
            assert "icc_profile" not in result.info
            found[name] = np.asarray(result)[1, 1].tolist()
    assert found["grey"] == found["deep"] == [188, 188, 188], "half of the light in sRGB"
    red, green, blue = found["ink"]
    assert green > 120 > red, "and cyan is blue without the profile"
    assert green > blue + 20


def test_a_damaged_profile_is_reported_if_needed(sample):
    Image.new("CMYK", (SIZE, SIZE)).save("in/x.tif", icc_profile=green_ink()[:300])
    save_mask("x", HOLE)
    code, _, err = sample()
    assert code == 2
    assert "in/x.tif: its colour profile cannot be used" in err[0]
    assert "save it as sRGB" in err[0]


def test_a_photograph_is_written_upright_with_its_profile_and_nothing_else(sample):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    image = random_image(2 * SIZE, SIZE)
    image.save("in/x.png", exif=exif, icc_profile=profile, dpi=(300, 300))
    hole = box_hole(SIZE, 2 * SIZE, 0, 0, 5, 5)
    save_mask("x", hole)
    assert sample(size_policy="crop")[0] == 0
    with Image.open("out/x.png") as result:
        assert set(result.info) == {"icc_profile", "rad"}
        assert not result.getexif()
        upright = np.rot90(np.asarray(image), -1)
        assert np.array_equal(np.asarray(result)[5:], upright[5:])


# ---- what is too large ---------------------------------------------------------------------------


def test_a_decompression_bomb_gives_one_line(sample):
    """60,000 x 60,000 pixels in a file of a few bytes."""
    for name in ("a", "b"):
        random_image(SIZE, SIZE).save(f"in/{name}.png")
        save_mask(name, HOLE)
    content = bytearray(Path("in/b.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    Path("in/b.png").write_bytes(content)
    shutil.copy("in/b.png", "mask.png")
    code, out, err = sample()
    assert (code, out) == (3, ["out/a.png"])
    (line,) = (line for line in err if line.startswith("failed:"))
    assert "in/b.png: Image size (3600000000 pixels) exceeds limit of 179000000 pixels (rad sample --max_me" in line
    code, _, err = sample(image="in/a.png", mask="mask.png", output="x.png")
    assert code == 2
    assert "mask.png" in err[0]
    assert "3600000000 pixels" in err[0]


def test_the_limit_can_be_moved_and_stays_that_of_this_command(sample):
    random_image(SIZE, SIZE).save("in/a.png")
    save_mask("a", HOLE)
    before = Image.MAX_IMAGE_PIXELS
    code, _, err = sample(max_megapixels=0.000255)
    assert code == 2
    assert "256 pixels" in err[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow would warn from half of it on
        assert sample(max_megapixels=0.000256)[0] == 0
    assert before == Image.MAX_IMAGE_PIXELS
    for wrong in ("0", "-3", "nan", "inf"):
        code, _, err = sample(max_megapixels=wrong)
        assert code == 2
        assert len(err) == 1


def test_oversized_compressed_data_is_not_unpacked(sample, monkeypatch):
    original, mask = random_image(SIZE, SIZE), Image.fromarray(np.uint8(255 * HOLE[0].numpy()))
    for name, image in (("in", original), ("masks", mask)):
        image.save("a.png")
        with zipfile.ZipFile(f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in ("a.png", "c.png"):
                archive.write("a.png", entry)
            archive.writestr("x.png", bytes(9_000_000))
            if name == "in":
                archive.write("a.png", "y.png")
            else:
                archive.writestr("y.png", bytes(9_000_000))
    assert Path("in.zip").stat().st_size < 20_000
    unpacked = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: unpacked.append(len(read(self, name))) or read(self, name)
    )
    code, out, err = sample(image="in.zip", mask="masks.zip", max_megapixels=1)
    assert (code, out) == (3, ["out/a.png", "out/c.png"])
    first, second = (line for line in err if line.startswith("failed:"))
    assert "in.zip:x.png: it unpacks to 9 MB, more than an image of 1 megapixels has" in first
    assert "masks.zip:y.png: it unpacks to 9 MB" in second
    assert max(unpacked) < 10_000


def test_a_zip_that_lies_about_a_size_is_read_no_further(sample):
    save_mask("x", HOLE)
    with zipfile.ZipFile("in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(9_000_000))
    content = Path("in.zip").read_bytes()
    Path("in.zip").write_bytes(content.replace(struct.pack("<I", 9_000_000), struct.pack("<I", 1000)))
    code, _, err = sample(image="in.zip", max_megapixels=1)
    assert code == 2
    assert "failed: in.zip:x.png: Bad CRC-32" in err[0], "of the 1000 bytes that it claims to have"


# ---- where to, and how many ----------------------------------------------------------------------


@pytest.mark.parametrize("output", ["locked/deep", "locked/x.png"])
def test_an_unwritable_folder_is_reported_before_the_model_loads(sample, monkeypatch, output):
    random_image(SIZE, SIZE).save("in/a.png")
    save_mask("a", HOLE)
    Path("locked").mkdir()

    def refuse(lock):
        assert Path("locked") in Path(lock.lock_file).parents
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rad.lock.FileLock.acquire", refuse)
    code, out, err = sample(image="in/a.png", mask="masks/a.png", output=output, checkpoint="nowhere")
    assert (code, out, len(err)) == (2, [], 1)
    assert f"--output {output} cannot be written" in err[0]
    assert "takes no files (Permission denied)" in err[0]
    assert not list(Path("locked").iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root can write")
def test_not_even_root_writes_there(sample):
    random_image(SIZE, SIZE).save("in/a.png")
    save_mask("a", HOLE)
    code, _, err = sample(output="/proc/results", checkpoint="nowhere")
    assert (code, len(err)) == (2, 1)
    assert "/proc takes no files" in err[0]


@pytest.fixture
def quick(monkeypatch):
    """A model that paints everything grey in one call; the list of its inputs."""
    batches = []

    def fill(self, batch, *_):
        batches.append([canvas.name for canvas, _ in batch])
        for canvas, window in batch:
            canvas.paste(window, np.zeros((3, *self.model.size), np.float32))
        return SimpleNamespace(nfe=1, vjp=0, seconds=0.0)

    monkeypatch.setattr(WindowFiller, "_fill_batch", fill)
    return batches


def make_many(count, broken):
    random_image(SIZE, SIZE).save("image.png")
    save_mask("mask", HOLE)
    for number in range(count):
        path = Path("in", f"{number:05}.png")
        if number % broken == 1:
            path.write_bytes(b"no image")
        else:
            shutil.copy("image.png", path)


def test_many_images_some_of_them_broken_and_a_run_that_is_interrupted(sample, quick, monkeypatch):
    """Each file is written once, and the list of costs once a cell, however many images there are."""
    make_many(count=40, broken=7)
    written = []
    whole = record.write_text
    for module in (record, run_log):  # run.json and costs.csv
        monkeypatch.setattr(
            module, "write_text", lambda path, text, **how: written.append(path.name) or whole(path, text, **how)
        )
    fill = WindowFiller._fill_batch
    interrupted = iter([False] * 5 + [True] + [False] * 100)

    def fill_or_stop(*arguments):
        if next(interrupted):
            raise KeyboardInterrupt
        return fill(*arguments)

    monkeypatch.setattr(WindowFiller, "_fill_batch", fill_or_stop)
    words = ["--mask", "half", "--method", "mean", "--batch_size", "4"]
    code, out, err = sample(*words, mask="masks/mask.png")
    assert (code, len(out)) == (130, 5 * 4)
    assert err[-1].startswith("interrupted")
    kept = {name: Path(name).stat().st_mtime_ns for name in out}
    code, rest, err = sample(*words, mask="masks/mask.png")
    assert code == 3
    assert err[-1] == "6 of 40 images failed"
    assert len([line for line in err if line.startswith("failed:")]) == 2 * 6, "once a mask"
    assert not set(rest) & set(kept)
    assert {name: Path(name).stat().st_mtime_ns for name in out} == kept
    assert len(out) + len(rest) == 2 * 34
    assert sorted(name for batch in quick for name in batch) == sorted(
        2 * [f"{n:05}.png" for n in range(40) if n % 7 != 1]
    )
    assert written.count("costs.csv") == 3, "of two masks, and of the first in both runs"
    assert len(run_log.read_costs(Path("out/mask/mean/costs.csv"))) == 34
    assert len(Path("out/mask/mean/costs.csv").read_text().splitlines()) == 1 + 34
