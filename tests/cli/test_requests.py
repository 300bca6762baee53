"""Results and their requests: other settings, edited inputs, files of stopped runs, and two runs at once."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rad import lock
from rad.cli import main as cli
from rad.cli.sample.options import SampleOptions, read_options
from rad.cli.sample.plan import make_plan, mask_name
from rad.cli.sample.request import Requests, is_incomplete, read_request
from rad.cli.sample.runtimes.pytorch import TorchRuntime
from rad.lock import locked
from rad.masks.names import main_names
from rad.masks.shapes import make
from rad.methods.rad import RAD
from tests.conftest import SIZE, random_image


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    """Two images, a mask, and a second mask of other content."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    Path("in").mkdir()
    for number, name in enumerate("ab"):
        random_image(SIZE, SIZE, seed=number).save(f"in/{name}.png")
    for name, box in (("mask", (3, 4, 9, 9)), ("other", (3, 4, 10, 9))):
        image = Image.new("L", (SIZE, SIZE))
        image.paste(255, box)
        image.save(f"{name}.png")


@pytest.fixture
def sample(adapter, capsys):
    def call(words="", **options):
        named = {"checkpoint": adapter, "image": "in", "mask": "mask.png", "output": "out", "method": "mean", **options}
        code = cli.sample([*(w for n, v in named.items() for w in (f"--{n}", str(v))), *words.split()])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return call


def contents(folder="out"):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.png")}


def edit(path):
    image = Image.open(path)
    image.putpixel((0, 0), 255 if image.mode == "L" else (1, 2, 3))
    image.save(path)


@pytest.mark.spread(3)
@pytest.mark.parametrize(
    ("words", "options", "part"),
    [
        ("--seed 1", {}, "seed 0, now 1"),
        ("", {"mask": "other.png"}, "another mask"),
        ("", {"mask": "box"}, "another mask"),
        ("", {"method": "biharmonic"}, "method mean, now biharmonic"),
        ("--size_policy crop", {}, "size_policy error, now crop"),
        ("--mask_polarity white_is_known", {}, "mask_polarity white_is_fill, now white_is_known"),
        ("--feather 2", {}, "feather"),
        ("--seed 1 --raw", {}, "seed 0, now 1"),
    ],
)
def test_another_request_is_not_taken_for_a_finished_one(sample, words, options, part):
    assert sample()[0] == 0
    before = contents()
    code, out, err = sample(words, **options)
    assert (code, out) == (2, [])
    assert err.count("\n") == 1
    assert part in err
    assert "2 files, such as out/a.png" in err
    assert "give --overwrite or another --output" in err
    assert contents() == before
    code, out, _ = sample(f"{words} --overwrite", **options)
    assert (code, out) == (0, ["out/a.png", "out/b.png"])
    assert sample(words, **options)[:2] == (0, [])


def test_steps_model_and_precision_belong_to_the_request(sample, adapter, models, base, tmp_path):
    from tests.conftest import make_adapter

    make_adapter(tmp_path / "other", base, seed=2)
    assert sample("--steps 1 --limit 1", method="rad")[0] == 0
    for words, options, part in (
        ("--steps 2", {}, "steps 1, now 2"),
        ("--steps 1", {"checkpoint": tmp_path / "other"}, "another model"),
        ("--steps 1 --precision bf16", {}, "precision 32, now bf16"),
        ("--steps 1 --eta 0.5", {}, "eta"),
    ):
        code, _, err = sample(f"{words} --limit 1", method="rad", **options)
        assert code == 2
        assert part in err, err
    assert sample("--limit 1", method="rad@1")[:2] == (0, []), "the same steps in other words"


def test_the_preset_number_of_steps_is_recorded_and_assumed_where_it_is_missing(sample, monkeypatch):
    monkeypatch.setattr(RAD, "preset_steps", 2)
    assert sample("--limit 1", method="rad")[0] == 0
    path = Path("out/a.png")
    request = read_request(path)
    assert request is not None
    assert request.pop("steps") == 2
    text = PngInfo()
    text.add_text("rad", json.dumps(request))
    Image.open(path).save(path, pnginfo=text)  # as earlier versions wrote it
    assert sample("--limit 1", method="rad")[:2] == (0, [])
    assert sample("--limit 1", method="rad@2")[:2] == (0, [])
    code, _, err = sample("--limit 1", method="rad@1")
    assert code == 2
    assert "steps 2, now 1" in err


def test_a_single_file_has_its_request_too(sample):
    one = {"image": "in/a.png", "output": "a.png"}
    assert sample(**one)[:2] == (0, ["a.png"])
    assert sample(**one)[:2] == (0, [])
    code, _, err = sample("--seed 3", **one)
    assert code == 2
    assert "a.png is a result of another request (seed 0, now 3)" in err
    assert sample(image="in/b.png", output="a.png")[0] == 2, "another image"


def test_images_may_come_one_by_one_into_a_folder(sample):
    for name in "ab":
        assert sample(image=f"in/{name}.png")[:2] == (0, [f"out/{name}.png"])
    assert sample()[:2] == (0, []), "the same images as a folder"


def test_an_equal_name_in_another_folder_is_another_image(sample):
    assert sample(image="in/a.png")[0] == 0
    Path("more").mkdir()
    random_image(SIZE, SIZE, seed=9).save("more/a.png")
    code, _, err = sample(image="more/a.png")
    assert code == 2
    assert "another image" in err


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", ["mask.png", "in/a.png"])
def test_an_edited_input_is_an_error_and_nothing_is_lost(sample, name):
    assert sample()[0] == 0
    os.utime(name, (time.time() + 100,) * 2)
    assert sample()[:2] == (0, []), "touched, and of equal content"
    before = contents()
    edit(name)
    code, out, err = sample()
    assert (code, out) == (2, [])
    assert f"another {'mask' if name == 'mask.png' else 'image'}" in err
    assert "delete what is to be filled again" in err
    assert contents() == before
    Path("out/a.png").unlink()
    assert sample()[0] == (2 if name == "mask.png" else 0), "the mask is also that of b"
    assert sample("--overwrite")[0] == 0


def test_results_without_a_request_are_kept_with_a_remark(sample):
    assert sample()[0] == 0
    Image.open("out/a.png").save("out/a.png")
    code, out, err = sample("--seed 1")
    assert code == 2, "b has one"
    Path("out/b.png").unlink()
    code, out, err = sample("--seed 1")
    assert (code, out) == (0, ["out/b.png"])
    assert "skipped 1 of 2 images, finished before; 1 of them do not record their settings" in err
    assert "warning" not in err


@pytest.mark.spread(1)
@pytest.mark.parametrize("size", [60, 0, 5, 200])
def test_a_torn_result_is_computed_again(sample, size):
    assert sample()[0] == 0
    before = contents()
    Path("out/a.png").write_bytes(before["a.png"][:size])
    assert is_incomplete(Path("out/a.png"))
    assert sample()[:2] == (0, ["out/a.png"])
    assert contents() == before


def test_a_file_of_another_kind_is_not_replaced(sample):
    Path("out").mkdir()
    Path("out/a.png").write_text("my notes")
    code, _, err = sample()
    assert code == 2
    assert "out/a.png is not a PNG file" in err
    assert Path("out/a.png").read_text() == "my notes"


def test_a_result_contains_no_paths_and_no_prompts(sample, adapter, tmp_path):
    assert sample("--limit 1", method="rad@1")[0] == 0
    request = read_request(Path("out/a.png"))
    assert request is not None
    assert request["steps"] == 1
    assert str(tmp_path) not in json.dumps(request)
    assert Path(adapter).name not in json.dumps(request)
    words = f"--checkpoint {adapter} --image in --mask mask.png --output out --prompt secret --negative_prompt hidden"
    options = read_options(words.split())
    runtime = TorchRuntime(options)
    (run,) = make_plan(options, list(runtime.methods))
    text = json.dumps(Requests(runtime).of(run.label, run.jobs[0]))
    assert "secret" not in text
    assert "hidden" not in text
    assert "negative_prompt" in text


def test_generators_differ_by_their_settings():
    from rad.cli.sample.request import _mask_hash

    hashes = {name: _mask_hash(make(name)) for name in main_names()}
    assert len(set(hashes.values())) == len(hashes)
    assert hashes == {name: _mask_hash(make(name)) for name in main_names()}, "no addresses of objects"


def test_a_second_run_into_a_folder_is_refused(sample):
    with locked(Path("out")):
        code, out, err = sample()
    assert (code, out) == (2, [])
    assert f"out is in use by process {os.getpid()} on " in err
    assert not Path("out").exists()
    assert sample(image="in/a.png", output="x.png")[0] == 0
    with locked(Path("out"), part="1of2", beside="*of2"):
        assert sample()[0] == 2, "a shard is running"
        assert sample("--shard 2/2 --batch_size 1")[:2] == (0, ["out/b.png"])
        assert sample("--shard 1/2")[0] == 2
        assert sample("--shard 2/3")[0] == 2
    assert sample()[:2] == (0, ["out/a.png"])


def test_files_of_one_folder_are_written_at_the_same_time(sample):
    with locked(Path(), part="0" * 16, beside="*"):
        assert sample(image="in/a.png", output="x.png")[:2] == (0, ["x.png"])
    with locked(Path()):
        assert sample(image="in/a.png", output="y.png")[0] == 2


def test_shards_of_other_settings_do_not_share_a_comparison(sample):
    words = "--mask mask.png other.png --batch_size 1"
    assert sample(f"{words} --shard 2/2")[0] == 0
    code, _, err = sample(f"{words} --shard 1/2 --seed 1")
    assert code == 2
    assert "results of --seed 0, this is 1" in err
    assert sample(f"{words} --shard 1/2")[0] == 0
    assert len(json.loads(Path("out/run.json").read_text())["runs"]) == 1


def test_a_shard_that_meets_other_settings_at_its_first_result_stops(sample, monkeypatch):
    from rad.cli.sample.fill import Worker

    words, fill = "--mask mask.png other.png --batch_size 1", Worker.fill

    def meanwhile(self, *arguments):
        monkeypatch.setattr(Worker, "fill", fill)
        assert sample(f"{words} --shard 2/2 --seed 1")[0] == 0
        return fill(self, *arguments)

    monkeypatch.setattr(Worker, "fill", meanwhile)
    code, out, err = sample(f"{words} --shard 1/2")
    assert (code, out) == (2, [])
    assert "results of --seed 1, this is 0" in err


def test_long_names_work_up_to_the_limit_and_are_refused_beforehand(sample):
    name = "é" * 125 + "x"  # 251 bytes
    os.rename("in/a.png", f"in/{name}.png")
    code, out, _ = sample("--limit 1", image=f"in/{name}.png")
    assert (code, out) == (0, [f"out/{name}.png"])
    for words in ("--raw", "--save_mask", "--num_samples 2"):
        code, out, err = sample(words, image=f"in/{name}.png", checkpoint="nowhere")
        assert (code, out) == (2, [])
        assert "this disk allows 255 bytes" in err
    assert os.listdir("out") == [f"{name}.png"]


@pytest.mark.slow
def test_leftovers_of_killed_runs_are_removed_and_modes_follow_the_umask(sample):
    Path("out").mkdir()
    left = Path("out/.0123abcd.rad-tmp.png")
    left.touch()
    os.utime(left, (0, 0))
    before = os.umask(0o007)
    try:
        assert sample("--shard 1/2 --batch_size 1")[0] == 0
        assert left.exists(), "other shards may be writing"
        assert sample("--save_mask --raw", mask="mask.png")[0] == 0
        assert sample("--report", output="tree", image="in")[0] == 0
    finally:
        os.umask(before)
    assert not left.exists()
    paths = [path for folder in ("out", "tree") for path in Path(folder).rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o660}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o770}


def test_a_torn_line_of_costs_is_repaired(sample, monkeypatch):
    words = "--mask mask.png other.png"
    assert sample(words)[0] == 0
    costs = Path("out/mask/mean/costs.csv")
    whole = costs.read_text()
    costs.write_text(whole[:-5])
    Path("out/mask/mean/b.png").unlink()
    code, out, err = sample(words)
    assert (code, out) == (0, ["out/mask/mean/b.png"]), err
    lines = costs.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["image", "a", "b"]
    assert all(line.count(",") == 5 for line in lines)


def test_the_whole_request_is_compared():
    """Each option is compared, or does not change a result."""
    import dataclasses

    from rad.cli.sample.record import COMMON, ONLY_IF_GIVEN
    from rad.cli.sample.request import OF_EACH
    from rad.evaluation.options import ReportOptions

    elsewhere = {
        "checkpoint",
        "base",
        "mask",
        "method",
        "set",
        "steps",
        "budget_nfe",
        "solver",
        "spacing",
        "eta",
        "strength",
        "average",
        "adapt",
        "thin_steps",
    }
    elsewhere |= {"precision", "prompt", "prompts", *ONLY_IF_GIVEN, *OF_EACH}
    without_effect = {"mask_by", "limit", "output", "batch_size", "device", "devices", "shard", "max_megapixels"}
    without_effect |= {"compile", "channels_last", "offload"}
    without_effect |= {
        "raw",
        "save_mask",
        "preview_masks",
        "report",
        "overwrite",
        *(f.name for f in dataclasses.fields(ReportOptions)),
    }
    names = {field.name for field in dataclasses.fields(SampleOptions)}
    assert names - set(COMMON) - elsewhere - without_effect == set()
    assert mask_name("box") == "box"


def test_noise_of_an_accelerator_is_recorded_by_its_kind(monkeypatch):
    monkeypatch.setattr("rad.device.find_device", lambda name: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Card")
    words = ["--checkpoint", "model", "--image", "in", "--mask", "box", "--output", "out"]
    recorded = {}
    for choice in ("cpu", "device"):
        options = read_options([*words, "--noise_device", choice])
        (request,) = Requests(TorchRuntime(options))._common.values()
        recorded[choice] = request.get("noise_device")
    assert recorded == {"cpu": None, "device": "Card"}
