"""The nodes of integrations/comfyui, loaded and called as ComfyUI does: under inference mode, with its tensors."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, box_hole, random_image
from tests.pages import DOCS

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"
MASK = box_hole(SIZE, SIZE, 3, 4, 11, 12)
IMAGE = torch.stack([torch.from_numpy(np.asarray(random_image(SIZE, SIZE, seed=n)) / np.float32(255)) for n in (0, 1)])
DEFAULTS = {"method": "rad", "steps": 2, "seed": 5, "samples": 1, "size_policy": "error", "soft_mask": False}


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


@pytest.fixture(scope="module")
def nodes(models, tmp_path_factory):
    """The node classes by name, loaded with stand-ins for ComfyUI's modules; `comfy` records their calls."""
    root = tmp_path_factory.mktemp("comfy")
    shutil.copytree(models, root / "rad")
    for name in (".DS_Store", "notes.txt"):
        (root / "rad" / name).touch()
    comfy = SimpleNamespace(updates=[], interrupt=False)

    def check():
        if comfy.interrupt:
            raise Interrupted

    class ProgressBar:
        def __init__(self, total, node_id=None):
            assert total > 0

        def update_absolute(self, value, total=None, preview=None):
            comfy.updates.append((value, total, preview))

    places = {}
    modules = {
        "comfy": {},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": check,
            "get_torch_device": lambda: torch.device("cpu"),
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
        "folder_paths": {
            "models_dir": str(root),
            "add_model_folder_path": lambda name, path: places.setdefault(name, []).append(path),
            "get_folder_paths": lambda name: places[name],
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in modules.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        sys.modules["comfy"].model_management = sys.modules["comfy.model_management"]
        sys.modules["comfy"].utils = sys.modules["comfy.utils"]
        package = load(patch)
    return SimpleNamespace(**package.NODE_CLASS_MAPPINGS, package=package, comfy=comfy)


def load(patch):
    name = f"{FOLDER}_under_test"  # ComfyUI names the module by its path
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, package)
    spec.loader.exec_module(package)
    return package


@pytest.fixture(scope="module")
def model(nodes):
    with torch.inference_mode():
        return call(nodes.RADModelLoader, model="adapter", precision="32", base="base")[0]


def call(node, **values):
    """Call a node's function as ComfyUI does, after its check of choices."""
    inputs = node.INPUT_TYPES()
    kinds = inputs["required"] | inputs.get("optional", {})
    assert set(inputs["required"]) <= set(values) <= set(kinds)
    for name, value in values.items():
        if isinstance(kinds[name][0], list):
            assert value in kinds[name][0]
    outputs = getattr(node(), node.FUNCTION)(**values)
    assert len(outputs) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return outputs


def test_results_equal_the_inpainter(nodes, model, adapter):
    with torch.inference_mode():
        (filled,) = call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK, **{**DEFAULTS, "samples": 2})
    images = [random_image(SIZE, SIZE, seed=seed) for seed in (0, 1)]
    expected = Inpainter.from_pretrained(adapter, device="cpu")(images, MASK, steps=2, seed=5, num_samples=2)
    assert torch.equal(
        (filled * 255).round().byte(), torch.stack([torch.tensor(np.asarray(i)) for i in expected.images])
    )
    assert filled.dtype == torch.float32
    assert float(filled.max()) <= 1


def test_known_pixels_keep_all_their_bits_and_alpha_is_dropped(nodes, model):
    image = torch.rand(1, SIZE, SIZE, 4, generator=torch.Generator().manual_seed(0)) * 1.01  # not 8 bits, some above 1
    (filled,) = call(nodes.RADInpaint, model=model, image=image, mask=MASK, **DEFAULTS)
    assert torch.equal(filled[MASK == 0], image[..., :3][MASK == 0])
    assert not torch.isclose(filled[MASK == 1], image[..., :3][MASK == 1]).all(dim=-1).any()


def test_grey_masks(nodes, model):
    def fill(mask, **changes):
        return call(nodes.RADInpaint, model=model, image=IMAGE[:1], mask=mask, **{**DEFAULTS, **changes})[0]

    grey = torch.where(MASK == 1, 0.7, 0.3)
    assert torch.equal(fill(grey), fill(MASK))
    soft = fill(grey, soft_mask=True)
    assert not torch.equal(soft[MASK == 0], IMAGE[:1][MASK == 0])  # 0.3 changes a little


def test_gradients_work_under_inference_mode(nodes, model):
    with torch.inference_mode():
        (filled,) = call(nodes.RADInpaint, model=model, image=IMAGE[:1], mask=MASK, **{**DEFAULTS, "method": "dps"})
    assert torch.equal(filled[MASK == 0], IMAGE[:1][MASK == 0])


def test_progress_preview_and_cancel(nodes, model):
    nodes.comfy.updates.clear()
    call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK, **DEFAULTS)
    assert [update[:2] for update in nodes.comfy.updates] == [(2, 4), (4, 4)]
    kind, preview, side = nodes.comfy.updates[0][2]
    assert (kind, preview.size, side) == ("JPEG", (SIZE, SIZE), 512)
    assert nodes.comfy.updates[1][2] is None  # within a second
    call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK, **{**DEFAULTS, "method": "mean"})
    nodes.comfy.interrupt = True
    with pytest.raises(Interrupted):
        call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK, **DEFAULTS)
    nodes.comfy.interrupt = False


def test_lists_of_models_and_errors(nodes, model):
    models = nodes.RADModelLoader.INPUT_TYPES()["required"]["model"][0]
    assert models[:2] == ["adapter", "base"]
    assert "rad-nature32" in models
    assert "features-nature64" not in models
    assert "notes.txt" not in models
    methods = nodes.RADInpaint.INPUT_TYPES()["required"]["method"][0]
    assert "rad" in methods
    assert "lama" not in methods, "it needs a path"
    with pytest.raises(ValueError, match="method is 'lama'; allowed are rad"):
        nodes.RADInpaint().fill(model, IMAGE, MASK, **{**DEFAULTS, "method": "lama"})
    with pytest.raises(ValueError, match="is not in the list: put its folder into ComfyUI/models/rad"):
        nodes.RADModelLoader().load("../elsewhere", "32")
    with pytest.raises(ValueError, match=r"method is 'evil.py:Evil'"):
        nodes.RADInpaint().fill(model, IMAGE, MASK, **{**DEFAULTS, "method": "evil.py:Evil"})
    with pytest.raises(ValueError, match="give masks of the image's size"):
        call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK[:, 1:], **DEFAULTS)
    with pytest.raises(ValueError, match="the mask is empty: paint one in the mask editor of Load Image"):
        call(nodes.RADInpaint, model=model, image=IMAGE, mask=torch.zeros(1, 64, 64), **DEFAULTS)
    with pytest.raises(ValueError, match="takes no text"):
        call(nodes.RADInpaint, model=model, image=IMAGE, mask=MASK, prompt="a boat", **DEFAULTS)


def test_package_loads_outside_of_comfyui_and_describes_itself(monkeypatch):
    package = load(monkeypatch)
    assert set(package.NODE_CLASS_MAPPINGS) == set(package.NODE_DISPLAY_NAME_MAPPINGS)
    content = pytest.importorskip("tomllib").loads((FOLDER / "pyproject.toml").read_text())
    assert content["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split()
    assert {"PublisherId", "DisplayName"} <= set(content["tool"]["comfy"])


def test_the_workflow_of_the_page_fits_the_nodes(nodes):
    """Required inputs are complete, choices are in their lists, and links have the right type."""
    found = re.search(r"```json\n(.*?)```", (DOCS / "how-to" / "comfyui.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    workflow = json.loads(found[1])
    outputs = {"LoadImage": ("IMAGE", "MASK")} | {
        name: kind.RETURN_TYPES for name, kind in nodes.package.NODE_CLASS_MAPPINGS.items()
    }
    own = [node for node in workflow.values() if node["class_type"].startswith("RAD")]
    assert len(own) == 2
    for node in own:
        inputs = getattr(nodes, node["class_type"]).INPUT_TYPES()
        kinds = inputs["required"] | inputs.get("optional", {})
        assert set(inputs["required"]) <= set(node["inputs"]) <= set(kinds)
        for name, value in node["inputs"].items():
            kind = kinds[name][0]
            if isinstance(value, list):
                source, number = value
                assert outputs[workflow[source]["class_type"]][number] == kind
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert type(value) is {"INT": int, "BOOLEAN": bool}[kind]
