"""RAD in diffusers' form: results equal those of `Inpainter`; diffusers loads what the pipeline saves."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import rad.pipelines
from rad.inpainting import Cancelled
from rad.inpainting.inpainter import Inpainter
from rad.models.loaded_model import Condition
from rad.pipelines import RADInpaintPipeline
from rad.resources import find_data
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_pipelines import write_pipeline

ROOT = Path(__file__).resolve().parents[1]
IMAGES = [random_image(SIZE, SIZE, seed=seed) for seed in (0, 1)]
MASK = Image.fromarray((box_hole(SIZE, SIZE, 3, 4, 11, 12)[0].numpy() * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pipe(adapter):
    return quiet(RADInpaintPipeline.from_pretrained(adapter))


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder for the module files that diffusers copies."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def equal(images, others):
    return len(images) == len(others) > 0 and all(map(np.array_equal, images, others))


def test_results_equal_the_inpainter(pipe, adapter):
    options = {"size_policy": "crop", "names": ["a", "b"], "solver": "ddpm", "eta": 0.5}
    images = [random_image(20, 27), IMAGES[1]]
    masks = [box_hole(20, 27, 2, 2, 18, 20), MASK]
    expected = Inpainter.from_pretrained(adapter, device="cpu")(
        images, masks, steps=4, seed=7, num_samples=2, **options
    )
    result = pipe(
        image=images,
        mask_image=masks,
        num_inference_steps=4,
        generator=seeded(7),
        num_images_per_prompt=2,
        **options,
    )
    assert equal(result.images, expected.images)
    assert result.nfe == expected.nfe > 16


def test_only_the_initial_seed_of_a_generator_counts(pipe):
    generator = seeded(3)
    first = pipe(image=IMAGES[0], mask_image=MASK, num_inference_steps=2, generator=generator).images
    state = generator.get_state()
    torch.rand(5, generator=generator)
    assert torch.equal(state, seeded(3).get_state())
    assert equal(first, pipe(image=IMAGES[0], mask_image=MASK, num_inference_steps=2, generator=generator).images)
    others = [
        pipe(image=IMAGES[0], mask_image=MASK, num_inference_steps=2, generator=g).images for g in (None, seeded(0))
    ]
    assert equal(*others)
    assert not equal(first, others[0])


def test_strength_is_that_of_an_inpainter(pipe):
    result = pipe(image=IMAGES[0], mask_image=MASK, num_inference_steps=4, strength=0.5)
    expected = pipe.inpainter(IMAGES[0], MASK, steps=4, strength=0.5)
    assert equal(result.images, expected.images)
    assert result.nfe == expected.nfe == 2
    assert not equal(result.images, pipe.inpainter(IMAGES[0], MASK, steps=4).images)


def test_prompts_become_conditions(tmp_path):
    pipe = quiet(RADInpaintPipeline.from_pretrained(write_pipeline(tmp_path, "stable")))
    options = {"method": "replacement", "num_inference_steps": 2}
    result = pipe(["a boat", "a house"], IMAGES[0], MASK, negative_prompt="sea", guidance_scale=4.0, **options)
    conditions = [Condition(prompt=text, negative="sea", guidance=4.0) for text in ("a boat", "a house")]
    expected = pipe.inpainter([IMAGES[0]] * 2, MASK, method="replacement", steps=2, condition=conditions)
    assert equal(result.images, expected.images)
    assert not equal(result.images[:1], result.images[1:])
    with pytest.raises(ValueError, match="2 images and 3 entries of prompt"):
        pipe(["a", "b", "c"], IMAGES, MASK, **options)


def test_text_guided_adapter():
    source = find_data("rad-latent-nature32")
    image, mask = random_image(32, 32), box_hole(32, 32, 8, 8, 24, 24)
    pipe = quiet(RADInpaintPipeline.from_pretrained(source))
    result = pipe("a forest", image, mask, num_inference_steps=2, generator=seeded(1))
    expected = pipe.inpainter(image, mask, steps=2, seed=1, condition=Condition(prompt="a forest"))
    assert equal(result.images, expected.images)


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_saved_pipeline_needs_no_other_files(kind, models, modules, tmp_path):
    shutil.copytree(models, tmp_path / "models")
    base = {"base": tmp_path / "models" / "base"} if kind == "adapter" else {}
    pipe = quiet(RADInpaintPipeline.from_pretrained(tmp_path / "models" / kind, **base))
    call = {"image": IMAGES, "mask_image": MASK, "num_inference_steps": 3, "method": "rad" if base else "replacement"}
    expected, saved = pipe(**call).images, tmp_path / "saved"
    pipe.save_pretrained(saved)
    pipe.save_pretrained(saved)  # replaces
    shutil.rmtree(tmp_path / "models")
    given = (
        {"base": saved / "base"} if kind == "adapter" else {}
    )  # the adapter names a base that still exists elsewhere
    ours = RADInpaintPipeline.from_pretrained(saved, **given)
    theirs = [DiffusionPipeline.from_pretrained(saved, custom_pipeline=saved.as_posix(), trust_remote_code=True)]
    theirs.append(DiffusionPipeline.from_pretrained(saved, trust_remote_code=True))
    for loaded in (ours, *theirs):
        assert isinstance(loaded, RADInpaintPipeline)
        assert equal(quiet(loaded)(**call).images, expected)
    ours.save_pretrained(tmp_path / "again")
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (saved, tmp_path / "again")]
    assert names[0] == names[1]


def test_diffusers_loads_a_stock_folder_with_our_code(base, modules):
    code = Path(rad.pipelines.__file__).parent
    pipe = quiet(DiffusionPipeline.from_pretrained(base, custom_pipeline=str(code), trust_remote_code=True))
    result = pipe(image=IMAGES[0], mask_image=MASK, method="repaint", num_inference_steps=2)
    expected = Inpainter.from_pretrained(base, device="cpu")(IMAGES[0], MASK, method="repaint", steps=2)
    assert equal(result.images, expected.images)


def test_output_types(pipe):
    def call(**options):
        return pipe(image=IMAGES, mask_image=MASK, num_inference_steps=1, **options)

    pixels = np.stack([np.asarray(image) for image in call().images])
    array, tensor = call(output_type="np").images, call(output_type="pt", return_dict=False)[0]
    assert array.dtype == np.float32
    assert np.array_equal(array, pixels.astype(np.float32) / 255)
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 3, 1, 2))


def test_callback_sees_progress_and_can_interrupt(pipe, capsys):
    steps = []

    def watch(pipeline, step, timestep, arguments):
        assert pipeline is pipe
        assert timestep is None
        progress = arguments["progress"]
        steps.append((step, progress.done, progress.planned, progress.previews()[0].size))
        return arguments

    call = {"image": IMAGES[0], "mask_image": MASK, "num_inference_steps": 3}
    expected = pipe(**call).images
    pipe.set_progress_bar_config(desc="filling")
    assert equal(pipe(**call, callback_on_step_end=watch).images, expected)
    assert steps == [(step, step + 1, 3, (SIZE, SIZE)) for step in range(3)]
    assert "3/3" in capsys.readouterr().err
    quiet(pipe)

    def stop(pipeline, step, timestep, arguments):
        pipeline._interrupt = step == 1

    with pytest.raises(Cancelled):
        pipe(**call, callback_on_step_end=stop)
    with pytest.raises(ValueError, match="returned a change"):
        pipe(**call, callback_on_step_end=lambda *_: {"latents": 0})
    assert equal(pipe(**call).images, expected)


def test_to_moves_the_model_and_sets_its_precision(adapter):
    pipe = quiet(RADInpaintPipeline.from_pretrained(adapter, torch_dtype=torch.bfloat16))
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.bfloat16)
    call = {"image": IMAGES[0], "mask_image": MASK, "num_inference_steps": 2}
    low = pipe(**call).images
    assert pipe.to("cpu", torch.float32) is pipe
    assert pipe.dtype == torch.float32
    assert not equal(low, pipe(**call).images)
    assert equal(low, pipe.to(torch.bfloat16)(**call).images)


def test_the_precision_of_a_pipeline_is_its_own(adapter):
    inpainter = Inpainter.from_pretrained(adapter, device="cpu")
    call = {"image": IMAGES[0], "mask_image": MASK, "num_inference_steps": 2}
    expected = inpainter(**call).images
    one, other = (quiet(RADInpaintPipeline(inpainter)) for _ in range(2))
    assert one.to("cpu", torch.bfloat16).inpainter.model is inpainter.model
    assert (one.dtype, other.dtype, inpainter.precision) == (torch.bfloat16, torch.float32, "32")
    assert equal(expected, inpainter(**call).images)
    assert equal(expected, other(**call).images)
    assert not equal(expected, one(**call).images)
    inpainter.to("cpu")
    assert one.device is inpainter.device, "the pipeline follows the model"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask_image": None}, ValueError, "give both by name"),
        ({"generator": [torch.Generator()]}, ValueError, "give one torch.Generator for all images"),
        ({"output_type": "latent"}, ValueError, "allowed are pil, np, pt"),
        ({"image": [IMAGES[0], random_image(8, 8)], "output_type": "np"}, ValueError, "images of one size"),
        ({"prompt": "a boat"}, ValueError, "takes no text: leave the prompt out"),
        ({"guidance_scale": 3.0}, ValueError, "takes no text: leave guidance out"),
        ({"num_images_per_prompt": 0}, ValueError, "^num_images_per_prompt is 0"),
        ({"num_inference_steps": 5000}, ValueError, "^num_inference_steps is 5000"),
        (
            {"mask_image": MASK.resize((2 * SIZE, 2 * SIZE))},
            ValueError,
            "give mask_resize='nearest' to pipe.inpainter, or give the mask",
        ),
        ({"strength": 0}, ValueError, "strength is 0; allowed are above 0 to 1"),
        ({"strength": 0.5, "method": "daps"}, ValueError, "method 'daps' cannot start from the image's content"),
        ({"num_inference_step": 5}, TypeError, "did you mean num_inference_steps"),
        ({"latents": 0}, TypeError, "no argument latents: give generator= and names="),
        ({"mask": MASK}, TypeError, "no argument mask: give mask_image="),
        ({"seed": 1}, TypeError, "no argument seed: give generator="),
        ({"prompt": []}, ValueError, "prompt is an empty list"),
    ],
)
def test_errors_of_a_call(options, error, message, pipe):
    with pytest.raises(error, match=message):
        pipe(**{"image": IMAGES[0], "mask_image": MASK, **options})


def test_errors_of_loading_and_saving(adapter, pipe, tmp_path):
    with pytest.raises(ValueError, match=r"runs in torch.float32 or torch.bfloat16"):
        RADInpaintPipeline.from_pretrained(adapter, torch_dtype=torch.float16)
    with pytest.raises(ValueError, match="revision='main' has no effect"):
        RADInpaintPipeline.from_pretrained(adapter, revision="main")
    with pytest.raises(ValueError, match=r"only a model of RADInpaintPipeline.from_pretrained can be saved"):
        RADInpaintPipeline(pipe.inpainter).save_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: give a folder"):
        pipe.save_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="is a feature network for metrics, no diffusion model"):
        RADInpaintPipeline.from_pretrained("features-nature64")
    with pytest.raises(ValueError, match="this pipeline has no model"):
        RADInpaintPipeline()(image=IMAGES[0], mask_image=MASK)
    with pytest.raises(ValueError, match="is not a local folder: use RADInpaintPipeline"):
        RADInpaintPipeline().register_to_config(_name_or_path="user/name")  # as diffusers does
    with pytest.raises(ValueError, match="dtype is 'auto'"):
        RADInpaintPipeline.from_pretrained(adapter, torch_dtype="auto")
    with pytest.raises(ValueError, match="'rad-nature32'; give an Inpainter, or use from_pretrained"):
        RADInpaintPipeline("rad-nature32")
    with pytest.raises(ValueError, match="give the device first"):
        pipe.to(torch.float32, torch.device("cpu"))


def test_offload_is_chosen_when_loading(pipe, base):
    for switch in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload, pipe.enable_group_offload):
        with pytest.raises(NotImplementedError, match=r"offload='(model|sequential)'"):
            switch(onload_device="cpu")
    with pytest.raises(ValueError, match="offload is 'model', which moves weights"):
        RADInpaintPipeline.from_pretrained(base, offload="model")
    with pytest.raises(ValueError, match="set precision to 'bf16'"):
        RADInpaintPipeline.from_pretrained(base, quantize="int8")


def test_saving_leaves_the_model_s_own_folder_as_it_is(base, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(base, own)
    files = sorted(own.rglob("*"))
    pipe = RADInpaintPipeline.from_pretrained(own)
    for folder in (own, own / "inside"):
        with pytest.raises(ValueError, match="the files to copy: give another folder"):
            pipe.save_pretrained(folder)
    assert sorted(own.rglob("*")) == files


@pytest.mark.slow
def test_code_of_the_guide_runs(modules, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").symlink_to(find_data("rad-nature32").resolve().parent)
    random_image(40, 50).save("photo.png")
    Image.fromarray((box_hole(40, 50, 10, 12, 30, 30)[0].numpy() * 255).astype(np.uint8)).save("mask.png")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guides" / "diffusers.md").read_text(), re.DOTALL):
        exec(compile(block, "docs/guides/diffusers.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == [*(f"{n} of 4 network calls" for n in (1, 2, 3)), "interrupted"]
    assert Image.open("filled.png").size == (50, 40)
