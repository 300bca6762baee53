"""benchmarks/photographs.py: its windows, masks and tables; benchmarks/others: systems of other libraries on Gaussian data."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from scipy import ndimage

from benchmarks import photograph_tables, photographs
from benchmarks.others import run
from benchmarks.others.gaussian import Pairs, examine
from benchmarks.others.network import Network, denoise, epsilon, levels, sigmas
from benchmarks.others.repaint import RePaint
from rad.evaluation.results import Comparison, Cost, Difference, Interval, Metric, Row
from rad.masks import write_mask
from rad.rng import generator
from tests.conftest import random_image
from tests.tiny_networks import small_unet


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        random_image(70, 60, seed=number).save(folder / "deep" / f"{number}.png")
    random_image(30, 90, seed=9).save(folder / "small.png")
    return folder


# --- windows and masks ---


def test_windows_are_unscaled_and_keyed_by_name(data, tmp_path, capsys):
    photographs.prepare(tmp_path / "all", str(data), 48, None, 0)
    photographs.prepare(tmp_path / "two", str(data), 48, 2, 0)
    assert "1 of 5 photographs are smaller than 48x48" in capsys.readouterr().err
    windows, fewer = ({path.name: path for path in (tmp_path / name / "images").iterdir()} for name in ("all", "two"))
    assert len(windows) == 4
    assert len(fewer) == 2
    assert all(path.read_bytes() == windows[name].read_bytes() for name, path in fewer.items())
    for name, path in windows.items():
        whole = np.asarray(Image.open(data / name.replace("deep-", "deep/")))
        parts = np.lib.stride_tricks.sliding_window_view(whole, (48, 48, 3))
        assert (parts == np.asarray(Image.open(path))).all((-1, -2, -3)).any()
        for item in photographs.ITEMS:
            masks = [tmp_path / "all" / folder / name for folder in (f"masks/{item}", f"results/{item}/masks")]
            assert masks[0].read_bytes() == masks[1].read_bytes()


def test_a_larger_limit_keeps_the_photographs(data, tmp_path):
    kept = set()
    for limit in (1, 2, 4):
        photographs.prepare(tmp_path / str(limit), str(data), 48, limit, 3)
        names = {path.name for path in (tmp_path / str(limit) / "images").iterdir()}
        assert len(names) == limit
        assert kept < names
        kept = names


def test_damage_has_the_described_size():
    def holes(item, side=192):
        return (
            photographs.ITEMS[item]([generator(0, item, number) for number in range(12)], side, side)[:, 0].numpy() > 0
        )

    assert not any(ndimage.binary_erosion(hole, np.ones((5, 5))).any() for hole in holes("scratches"))
    assert all(ndimage.binary_erosion(hole, np.ones((5, 5))).any() for hole in holes("strokes"))
    areas = holes("objects").mean((1, 2))
    assert np.median(areas) == pytest.approx(1 / 16, rel=0.1)
    assert all(0 < share < 0.3 for share in holes("lettering").mean((1, 2)))


def test_checkpoints_by_name_are_told_apart():
    named, other = (photographs.folder_hash(f"checkpoints/{name}") for name in ("photos", "photos-turbo"))
    assert named != other
    assert photographs.folder_hash(str(photographs.ROOT / "checkpoints" / "photos")) == named
    with pytest.raises(ValueError, match="is no folder"):
        photographs.folder_hash("nowhere")


@pytest.mark.parametrize("label", ["masks", "patchmatch"])
def test_labels_with_another_meaning_are_refused(label):
    with pytest.raises(ValueError, match="another meaning"):
        photographs.variants([f"{label}=--method telea"])


def test_several_results_of_a_photograph_are_refused(data, tmp_path):
    words = ["--data", str(data), "--output", str(tmp_path / "out"), "--only", "rad", "--options=--num_samples=2"]
    with pytest.raises(ValueError, match="one result"):
        photographs.main(words)


def test_two_photographs_with_one_name_are_refused(data, tmp_path):
    random_image(70, 60, seed=1).save(data / "deep-0.png")
    with pytest.raises(ValueError, match="same name"):
        photographs.prepare(tmp_path / "out", str(data), 48, None, 0)


def test_no_photograph_is_large_enough(data, tmp_path):
    with pytest.raises(ValueError, match="at least 90x90"):
        photographs.prepare(tmp_path / "out", str(data), 90, None, 0)


# --- choices ---


def test_only_takes_items_and_systems():
    systems = {"rad": "", "telea": "", "new": "--size_policy crop"}
    assert photographs.choose([], systems) == (list(photographs.ITEMS), list(systems))
    assert photographs.choose(["objects", "telea"], systems) == (["objects"], ["telea"])
    assert photographs.choose(["new"], systems) == (list(photographs.ITEMS), ["new"])
    with pytest.raises(ValueError, match="--only object"):
        photographs.choose(["object"], systems)


def test_a_variant_is_a_label_with_options():
    assert photographs.variants(["mine=--size_policy crop --set a.b=1"]) == {"mine": "--size_policy crop --set a.b=1"}
    with pytest.raises(ValueError, match="give LABEL=OPTIONS"):
        photographs.variants(["mine"])


def test_another_seed_is_refused(tmp_path):
    photographs.check_settings(tmp_path / "settings.json", {"seed": 0})
    photographs.check_settings(tmp_path / "settings.json", {"seed": 0})
    with pytest.raises(ValueError, match="results with seed 0, this is 1"):
        photographs.check_settings(tmp_path / "settings.json", {"seed": 1})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 0}


# --- tables ---


def test_texture_is_the_ratio_of_gradient_energies(tmp_path):
    hole = torch.zeros(1, 16, 16)
    hole[:, 4:12, 4:12] = 1
    for number in range(3):
        flat = (np.asarray(random_image(16, 16, seed=number)) // 2 * 2).astype(np.uint8)
        for folder, image in (("images", flat), ("item/half", flat // 2), ("item/same", flat)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
        (tmp_path / "item/masks").mkdir(exist_ok=True)
        write_mask(tmp_path / "item/masks" / f"{number}.png", hole)
    for label, expected in (("half", 0.25), ("same", 1)):
        found = photograph_tables.texture(tmp_path / "item", tmp_path / "images", label, seed=0)
        assert (found.value, found.low, found.high) == pytest.approx((expected,) * 3)


def test_the_interval_of_the_texture_is_that_of_a_ratio_of_sums(tmp_path):
    """The first of eight photographs has nearly all of the energy, and a quarter of it is left."""
    hole, energies = torch.ones(1, 16, 16), []
    for number in range(8):
        original = np.asarray(random_image(16, 16, seed=number)) // (2 if number == 0 else 32) * 2
        result = original // 2 if number == 0 else original
        for folder, image in (("images", original), ("item/a", result)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / folder / f"{number}.png")
        write_mask(tmp_path / "item/masks" / f"{number}.png", hole)
        energies.append(sum(float(np.square(np.diff(original.astype(float), axis=axis)).sum()) for axis in (0, 1)))
    found = photograph_tables.texture(tmp_path / "item", tmp_path / "images", "a", seed=0)
    assert found.value == pytest.approx(1 - 0.75 * energies[0] / sum(energies), rel=1e-5)
    assert 0.25 < found.low < 0.27, "at 0.6 percent, the first photograph is drawn four times"
    assert found.high == 1, "a third of the samples lack the first photograph"
    two = tmp_path / "two"
    for folder in ("images", "item/a", "item/masks"):
        (two / folder).mkdir(parents=True)
        for number in (0, 1, 2):
            (two / folder / f"{number}.png").write_bytes((tmp_path / folder / f"{number}.png").read_bytes())
    few = photograph_tables.texture(two / "item", two / "images", "a", seed=0)
    assert (few.low, few.high) == pytest.approx((0.25, 1.0)), "of three, the same one thrice has 3.7 percent"


def test_the_table_stars_significant_differences():
    metrics = [Metric("psnr-hole", "PSNR hole (dB)", "higher", 2, {}), Metric("ssim", "SSIM", "higher", 3, {})]

    def row(label, p):
        against = {} if p is None else {"psnr-hole": Difference(1, 0, 2, p, 9)}
        values = {"psnr-hole": Interval(20, 19, 21.5), "ssim": Interval(0.5, 0.4, 0.6)}
        return Row("item", label, "g", 9, 1, values, against, Cost(nfe=4, seconds=1.25, peak_mib=700))

    rows = [row("rad", None), row("near", 0.3), row("far", 0.01)]
    comparison = Comparison(metrics, rows, [], "rad", "psnr-hole", {}, [])
    texts = photograph_tables.table(
        "item", rows, dict.fromkeys(("rad", "near", "far"), Interval(0.9, 0.8, 1)), comparison
    )
    assert texts.splitlines() == [
        "## item",
        "",
        "| system | images | calls | PSNR hole (dB) | texture | seconds | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| `rad` | 9 | 4 | 20.00 [19.00, 21.50] | 0.90 [0.80, 1.00] | 1.25 | 700 |",
        "| `near` | 9 | 4 | 20.00 [19.00, 21.50] | 0.90 [0.80, 1.00] | 1.25 | 700 |",
        "| `far` | 9 | 4 | 20.00 [19.00, 21.50] * | 0.90 [0.80, 1.00] | 1.25 | 700 |",
    ]


# --- systems of other libraries ---


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_network_outputs_are_converted(tmp_path, prediction):
    small_unet().save_pretrained(tmp_path / "unet")
    DDPMScheduler(prediction_type=prediction).save_pretrained(tmp_path / "scheduler")
    network = Network(tmp_path)
    x0, e, t = 0.5 * torch.randn(2, 1, 3, 16, 16).clamp(-1, 1)[0], torch.randn(1, 3, 16, 16), 300
    a, s = levels(network.alphas_cumprod, t)
    assert a**2 + s**2 == pytest.approx(1)
    output = {"epsilon": e, "v_prediction": a * e - s * x0, "sample": x0}[prediction]
    network.unet.forward = lambda x, t: type("Output", (), {"sample": torch.cat([output, output], 1)})
    x = a * x0 + s * e
    torch.testing.assert_close(network.x0(x, t), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(epsilon(network, x, t), e, atol=1e-4, rtol=0)
    sigma = float(sigmas(network.alphas_cumprod)[t])
    assert sigma == pytest.approx(s / a / 2)
    noisy = (x0 + 1) / 2 + sigma * e
    torch.testing.assert_close(denoise(network, noisy, sigma), (x0 + 1) / 2, atol=1e-5, rtol=0)


def test_repaint_of_diffusers_fills_gaussian_data():
    system = run.build("diffusers-repaint@20", Pairs())
    found = examine(system, side=32)
    assert system.calls == 80
    assert found.known == 0  # the scheduler ends with the known pixels
    assert 0.25 < found.slope < 1
    assert 0.7 < found.spread < 1.2
    assert 0.6 < found.free < 1.1
    assert RePaint(Pairs()).calls == 2410  # the paper's number of network calls


@pytest.mark.parametrize(("name", "slope", "spread"), [("deepinv-ddrm", 0.2, 0.8), ("deepinv-diffpir", 0.3, 0.6)])
def test_systems_of_deepinv_fill_gaussian_data(name, slope, spread):
    pytest.importorskip("deepinv")
    found = examine(run.build(name, Pairs()), side=48)
    assert found.known < 0.03  # before the known pixels are restored
    assert slope < found.slope < 1
    assert spread < found.spread < 1.2
    assert 0.55 < found.free < 1.1


@pytest.mark.parametrize(
    ("name", "package"),
    [("patchmatch", "patchmatch"), ("opencv-telea", "cv2"), ("opencv-navier-stokes", "cv2"), ("biharmonic", "skimage")],
)
def test_systems_without_weights_fill_from_known_pixels(name, package):
    pytest.importorskip(package)
    image, hole = torch.full((1, 3, 48, 48), 0.25), torch.zeros(1, 1, 48, 48)
    hole[..., 16:32, 16:32] = 1
    hidden = torch.where(hole > 0, 0.5, image)
    filled = run.build(name, Pairs())(hidden, hole, torch.Generator().manual_seed(0))
    assert (filled - image).abs().max() <= 2 / 255  # opposite polarity would keep the grey of the hole


def test_a_folder_keeps_known_pixels_and_hides_the_hole(tmp_path):
    (tmp_path / "images").mkdir()
    original = random_image(12, 16, seed=1)
    original.save(tmp_path / "images/a.png")
    hole = torch.zeros(1, 12, 16)
    hole[:, 2:6, 3:9] = 1
    write_mask(tmp_path / "masks/a.png", hole)
    seen = []

    def system(image, hole, random):
        seen.append(image[hole.expand_as(image) > 0])
        return torch.ones_like(image)

    for _ in range(2):  # the second call has nothing left to do
        run.fill_folder(system, tmp_path / "images", tmp_path / "masks", tmp_path / "out", seed=0)
    assert len(seen) == 1
    assert (seen[0] == 0.5).all()
    filled = np.asarray(Image.open(tmp_path / "out/a.png"))
    fill = hole[0].numpy() > 0
    assert (filled[fill] == 255).all()
    assert (filled[~fill] == np.asarray(original)[~fill]).all()
    assert (tmp_path / "out/costs.csv").read_text().splitlines()[1].startswith("a,0,0,")


@pytest.mark.slow
def test_two_photographs_from_data_to_table(data, tmp_path):
    words = ["--data", str(data), "--output", str(tmp_path / "out"), "--size", "48", "--limit", "2"]
    only = ["--only", "scratches", "objects", "rad", "rad@2", "opencv-telea"]
    assert photographs.main([*words, *only]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## scratches", "## objects"]
    for label, calls in (("rad", "20"), ("rad@2", "2"), ("opencv-telea", "0")):
        lines = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| `{label}` ")]
        assert len(lines) == 2
        assert all(line[1] == "2" and float(line[-2]) > 0 for line in lines)
        assert label != "opencv-telea" or all(line[2] == calls for line in lines)
    for item in ("scratches", "objects"):
        assert Image.open(tmp_path / f"out/{item}.png").width > 5 * 48
        for path in (tmp_path / "out/images").iterdir():
            known = np.asarray(Image.open(tmp_path / f"out/masks/{item}" / path.name)) == 0
            filled = np.asarray(Image.open(tmp_path / f"out/results/{item}/rad" / path.name))
            assert (filled[known] == np.asarray(Image.open(path))[known]).all()
    before = (tmp_path / "out/results/objects/rad").stat().st_mtime_ns
    assert photographs.main([*words, "--only", "objects", "opencv-telea"]) == 0  # one item; the other system stays
    assert (tmp_path / "out/results/objects/rad").stat().st_mtime_ns == before
    assert "`rad@2`" in (tmp_path / "out/table.md").read_text()
