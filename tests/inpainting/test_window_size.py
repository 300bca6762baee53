"""Windows larger than the size that a pixel model was trained at: `size` in Python, `--size` of `rad sample`."""

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.inpainting import Inpainter
from tests.conftest import SIZE, box_hole, random_image

pytestmark = pytest.mark.slow
LARGE = 2 * SIZE
HOLE = box_hole(LARGE, LARGE, 5, 6, 20, 25)


@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_a_larger_window_is_one_call_of_the_network(kind, adapter, base):
    place, method = (adapter, "rad") if kind == "adapter" else (base, "ddnm")
    inpainter = Inpainter.from_pretrained(place, device="cpu", size=LARGE)
    assert inpainter.size == (LARGE, LARGE)
    image, known = random_image(LARGE, LARGE), HOLE[0].numpy() == 0
    whole = inpainter(image, HOLE, method=method, steps=2)
    assert whole.nfe == 2
    assert np.array_equal(np.asarray(whole.images[0])[known], np.asarray(image)[known])
    small = Inpainter.from_pretrained(place, device="cpu")
    with pytest.raises(ValueError, match=f"the model takes {SIZE}x{SIZE}"):
        small(image, HOLE, method=method, steps=2)


def test_sizes_that_the_network_cannot_halve_are_refused(adapter):
    with pytest.raises(ValueError, match=f"are {LARGE + 1}x{LARGE + 1}; their sides must be multiples of"):
        Inpainter.from_pretrained(adapter, device="cpu", size=LARGE + 1)


def test_rad_sample_records_the_size(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random_image(LARGE, LARGE).save("photo.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")
    words = f"--checkpoint {adapter} --image photo.png --mask mask.png --output out.png --device cpu --steps 2".split()
    assert cli.sample([*words, "--size", str(LARGE)]) == 0
    assert "1 window, rad" in capsys.readouterr().err
    assert cli.sample([*words, "--size_policy", "crop"]) == 2
    assert f"size {LARGE}, now" in capsys.readouterr().err
