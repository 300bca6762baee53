"""The static demo: its builder, and the built folder in Chromium, filled images against those of `rad sample`."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from rad.cli import main as cli
from rad.studio.site import packages
from rad.studio.site.build import build, for_browser
from tests.browser import chromium, needs_chromium, requested
from tests.conftest import random_image
from tests.studio.site_server import evaluate, serving

PAGE = '<meta charset="utf-8">\n<meta name="rad-backend" content="http">\n<script type="module" src="static/js/main.js"></script>'


def test_the_page_gets_the_backend_and_a_strict_policy() -> None:
    page = for_browser(PAGE)
    assert '<meta name="rad-backend" content="browser">' in page
    policy = page.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "page", [PAGE.replace("utf-8", "latin-1"), PAGE.replace('"http"', '"x"'), PAGE.replace("static", "/static")]
)
def test_a_page_that_would_not_work_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="relative URLs"):
        for_browser(page)


def test_another_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tgz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"other\.tgz is not onnxruntime-web"):
        packages.extract(tmp_path / "other.tgz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_npm_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"install Node\.js, or give --package"):
        packages.download(tmp_path)


def test_a_folder_of_other_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no earlier demo"):
        build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose subfolder `some/path` is the demo with the shipped model."""
    place = tmp_path_factory.mktemp("site")
    try:
        package = packages.download(place)
    except ValueError as error:
        pytest.skip(str(error))
    build(place / "some" / "path", package=package)
    package.unlink()
    return place


@pytest.fixture(scope="module")
def page(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A driver on a blank page of the demo's folder, whose `window.backend` is the browser's."""
    (site / "some" / "path" / "blank.html").write_text('<!doctype html><link rel="icon" href="data:,">')
    with chromium(tmp_path_factory.mktemp("profile")) as driver, serving(site) as url:
        driver.set_script_timeout(300)
        driver.get(f"{url}some/path/blank.html")
        evaluate(
            driver,
            'const { Backend } = await import("./static/js/backend/browser.js"); window.backend = new Backend();',
        )
        yield driver


BLOBS = """
  const blob = async (text, type) => (await fetch(`data:${type};base64,${text}`)).blob();
  const text = async (file) => {
    const bytes = new Uint8Array(await file.arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  };
"""

WAIT = """
  const until = async (find) => {
    for (;;) {
      const result = find();
      if (result) return result;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
"""


def in_the_page(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that builds the demo and opens it in Chromium."""
    for mark in (*needs_chromium, pytest.mark.slow, pytest.mark.net):
        test = mark(test)
    return test


@dataclass(frozen=True)
class Filled:
    """The files of a run in the page, and its last event."""

    images: list[bytes]
    mask: bytes
    settings: dict[str, Any]
    last: dict[str, Any]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def fill(
    page: Any, image: str, mask: str, *, name: str = "photo.png", kind: str = "image/png", **settings: Any
) -> Filled:
    body = """
      const events = [];
      const request = { image: await blob(image, kind), mask: await blob(mask, "image/png"), name, settings };
      const result = await window.backend.run(request, (event) => events.push(event)).result;
      const { preview, ...last } = events.at(-1);
      return [await Promise.all(result.images.map(text)), await text(result.mask), await result.settings.text(), last];
    """
    values = {"image": image, "mask": mask, "name": name, "kind": kind, "settings": settings}
    images, used, text, last = evaluate(page, BLOBS + body, **values)
    return Filled([base64.b64decode(each) for each in images], base64.b64decode(used), json.loads(text), last)


def smooth_image(height: int, width: int) -> Image.Image:
    """Something that the model knows: smooth colours with a little noise."""
    small = random_image(4, 5).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(small, random_image(height, width, seed=1), 0.1)


def strokes(height: int, width: int) -> Image.Image:
    """A mask with two holes, one of which is longer than a window's core."""
    mask = np.zeros((height, width), np.uint8)
    mask[6:12, 5:14] = mask[height - 15 : height - 9, 4 : width - 3] = 255
    return Image.fromarray(mask)


@in_the_page
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "ddpm", "steps": 8, "num_samples": 2, "batch_size": 2, "margin": 6},
        {"size_policy": "resize", "solver": "ddim", "steps": 8},
        {"extend": [3, 0, 6, 2], "steps": 6, "seed": 3},
        {"method": "repaint", "steps": 12, "set": {"jump_length": 3, "resamplings": 2}},
    ],
    ids=["preset", "samples", "resize", "extend", "repaint"],
)
def test_a_fill_equals_that_of_rad_sample(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """With the settings file, within one grey level in few values of the hole; known pixels are exact."""
    image, mask = smooth_image(44, 53), strokes(44, 53)
    filled = fill(page, encoded(image), encoded(mask), **settings)
    assert filled.last["state"] == "done"
    assert filled.last["nfe"] == filled.last["planned"] > 0
    monkeypatch.chdir(tmp_path)
    left, top, right, bottom = settings.get("extend", (0, 0, 0, 0))
    sides = (left, top, image.width + right, image.height + bottom)
    image.crop(tuple(-side if n < 2 else side for n, side in enumerate(sides))).save("photo.png")
    used = np.asarray(Image.open(io.BytesIO(filled.mask)))
    padded = np.pad(used, ((top, bottom), (left, right)), constant_values=255)
    Image.fromarray(padded).save("photo-mask.png")
    assert filled.settings.pop("extend", "0,0,0,0") == f"{left},{top},{right},{bottom}"
    several = settings.get("num_samples", 1) > 1
    Path("settings.json").write_text(json.dumps(filled.settings | ({"output": "out"} if several else {})))
    assert cli.sample(["--config", "settings.json"]) == 0
    outputs = sorted(Path("out").rglob("photo*.png")) if several else [Path(filled.settings["output"])]
    known = padded == 0
    np.testing.assert_array_equal(used, np.asarray(mask))
    assert len(outputs) == len(filled.images) == settings.get("num_samples", 1)
    for output, data in zip(outputs, filled.images, strict=True):
        values, expected = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(data), output))
        different = np.abs(values - expected)
        assert different.max() <= 1
        assert (different > 0)[~known].mean() < 0.06
        assert (values[known] == np.asarray(image).reshape(-1, 3)[(np.asarray(mask) == 0).flatten()]).all()


@in_the_page
def test_known_pixels_are_exact_in_files_of_other_kinds(page: Any) -> None:
    """Transparent colours, a colour profile (which the result keeps), grey, a palette, and a turned JPEG."""
    colours = np.asarray(random_image(40, 36, seed=2))
    alpha = np.random.default_rng(0).integers(0, 256, (40, 36, 1), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    palette = Image.fromarray(colours).quantize(32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    jpeg = encoded(Image.fromarray(colours), "JPEG", quality=95, exif=exif)
    turned = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))).transpose(Image.Transpose.ROTATE_270))
    cases = {
        "alpha": (encoded(Image.fromarray(np.concatenate([colours, alpha], 2))), colours),
        "profile": (encoded(Image.fromarray(colours), icc_profile=profile), colours),
        "grey": (encoded(Image.fromarray(colours[..., 0])), np.repeat(colours[..., :1], 3, 2)),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "turned": (jpeg, turned),
    }
    for kind, (file, expected) in cases.items():
        mask = np.zeros(expected.shape[:2], np.uint8)
        mask[9:20, 10:22] = 255
        type = "image/jpeg" if kind == "turned" else "image/png"
        result = fill(page, file, encoded(Image.fromarray(mask)), kind=type, steps=2)
        image = Image.open(io.BytesIO(result.images[0]))
        assert (np.asarray(image)[mask == 0] == expected[mask == 0]).all(), kind
        assert image.info.get("icc_profile") == (profile if kind == "profile" else None)


@in_the_page
def test_a_race_is_fair_and_a_lane_can_be_cancelled(page: Any) -> None:
    """The lanes alternate, so that RAD finishes while RePaint has done as many calls; a cancelled lane stops at once."""
    body = """
      const files = { image: await blob(image, "image/png"), mask: await blob(mask, "image/png"), name: "photo.png" };
      const seen = { rad: [], repaint: [] };
      const start = (method) => window.backend.run({ ...files, settings: { method } }, (event) => seen[method].push(event));
      const [repaint, rad] = [start("repaint"), start("rad")];
      await rad.result;
      const during = seen.repaint.at(-1);
      const began = performance.now();
      repaint.cancel();
      const state = await repaint.result.then(() => "done", (error) => error.state);
      const waited = performance.now() - began;
      const plain = ({ preview, ...event }) => ({ ...event, preview: preview && preview.size });
      return { rad: seen.rad.map(plain), during: plain(during), state, last: plain(seen.repaint.at(-1)), waited };
    """
    race = evaluate(page, BLOBS + body, image=encoded(smooth_image(44, 53)), mask=encoded(strokes(44, 53)))
    done = race["rad"][-1]
    assert done["state"] == "done"
    assert race["during"]["state"] == "running"
    # Events are at most ten a second, so that RePaint's last one is somewhat older.
    assert 0 < race["during"]["nfe"] <= 1.2 * done["nfe"] < 0.1 * race["during"]["planned"]
    assert race["during"]["preview"] > 0
    assert [event["nfe"] for event in race["rad"]] == sorted(event["nfe"] for event in race["rad"])
    assert race["state"] == race["last"]["state"] == "cancelled"
    assert race["last"]["nfe"] < 0.1 * race["last"]["planned"]
    assert fill(page, encoded(smooth_image(32, 32)), encoded(strokes(32, 32)), steps=2).last["state"] == "done"


@in_the_page
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dps"}, "this page has rad and repaint"),
        ({"solver": "ddim", "eta": 1}, "solver 'ddim' allows 0"),
        ({"steps": 0}, "allowed are 1 to 1000"),
        ({"size_policy": "error"}, "the model takes 32x32"),
        ({"method": "repaint", "set": {"jumps": 1}}, "repaint has no setting jumps"),
        ({"num_samples": 99}, "from 1 to 16"),
    ],
)
def test_wrong_settings_are_refused(page: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        fill(page, encoded(random_image(40, 40)), encoded(strokes(40, 40)), **settings)


@in_the_page
def test_mask_files_are_read(page: Any) -> None:
    """Black and white by grey values or transparency; two values; few and many greys; colours are refused."""
    body = """
      const { blob: mask, notes } = await window.backend.readMask(await blob(file, "image/png"));
      return [await text(mask), notes];
    """

    def read(mask: Image.Image) -> tuple[np.ndarray, list[str]]:
        file, notes = evaluate(page, BLOBS + body, file=encoded(mask))
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))), notes

    plain = np.asarray(strokes(32, 40))
    transparent = np.zeros((32, 40, 4), np.uint8)
    transparent[..., 3] = plain
    soft = np.linspace(0, 255, 32 * 40).reshape(32, 40).astype(np.uint8)
    few = plain.copy()
    few[0, :3] = 100, 128, 200
    for given, expected in (
        (plain, plain),
        (transparent, plain),
        (plain // 2, plain),
        (soft, soft),
        (few, few // 128 * 255),
    ):
        values, _ = read(Image.fromarray(given))
        np.testing.assert_array_equal(values, expected)
    with pytest.raises(AssertionError, match="the mask has colours"):
        read(random_image(32, 40))


@in_the_page
def test_the_demo_works_on_a_path_of_any_host(site: Path, tmp_path: Path) -> None:
    """A click on an example, one on Fill, and a result: no request elsewhere, and nothing in the console."""
    with chromium(tmp_path) as driver, serving(site) as url:
        driver.get(f"{url}some/path/")
        body = """
          const ready = (each) => each && !each.disabled && each.offsetParent ? each : null;
          const named = (name) => [...document.querySelectorAll("button")].find((each) => each.innerText.trim() === name);
          const button = (name) => until(() => ready(named(name)));
          await until(() => document.body.dataset.ready);
          (await button("Cat")).click();
          await until(() => document.querySelector("#editor").offsetParent);
          (await until(() => ready(document.querySelector("#fill")))).click();
          await button("Download PNG");
          return document.querySelector("#result").innerText;
        """
        driver.set_script_timeout(120)
        assert "Download PNG" in evaluate(driver, WAIT + body)
        assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
        assert {
            address for address in requested(driver) if not address.startswith((f"{url}some/path/", f"blob:{url}"))
        } == set()
        files = json.loads((site / "some" / "path" / "manifest.json").read_text())["files"]
        assert 0 < sum(files.values()) < 30e6
        assert sum(size for name, size in files.items() if "/model/" in name) < 15e6
