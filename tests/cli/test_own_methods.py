"""`--method FILE.py:CLASS`: a method of one's own in comparisons, labels, settings, records, reports and other processes."""

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.plan import Label
from rad.evaluation.run_log import read_costs
from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, box_hole, random_image

CODE = '''
"""Known pixels are taken over by the estimate."""
from dataclasses import dataclass, replace

from rad.sampling.method import SamplingMethod, setting


@dataclass(frozen=True)
class Pull(SamplingMethod):
    preset_steps = 3
    strength: float = setting(1.0, "how far known pixels are moved", low=0, high=1)

    def on_denoised(self, state, denoised):
        pull = (1 - state.task.hole) * (state.task.known - denoised.x0)
        return replace(denoised, x0=denoised.x0 + self.strength * pull)
'''
SPEC = "code/Mine.py:Pull"
pytestmark = pytest.mark.usefixtures("forget_methods")


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    for folder in ("in", "code"):
        Path(folder).mkdir()
    for number, name in enumerate("ab"):
        random_image(SIZE, SIZE, seed=number).save(f"in/{name}.png")
    Path("code/Mine.py").write_text(CODE)


@pytest.fixture
def sample(adapter, capsys):
    def call(words):
        code = cli.sample(["--checkpoint", str(adapter), "--image", "in", "--mask", "half", *shlex.split(words)])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err

    return call


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.png")}


def test_a_label_has_the_name_of_the_method():
    assert Label.of(f"{SPEC}@20") == Label("mine@20", "mine", steps=20)
    own = Label.of(f"{SPEC}@100nfe,eta=0")
    assert own == Label("mine@100nfe,eta=0", "mine", budget=100, eta=0.0)
    assert Label.of("mine@2") == Label("mine@2", "mine", steps=2)
    with pytest.raises(ValueError, match=r"method 'mine\.x' is not known"):
        Label.of(f"{SPEC}.x")


def test_it_is_compared_recorded_and_reported(sample):
    words = f"--method {SPEC}@2 {SPEC} ddnm@2 --set mine.strength=0.5 --output out --report"
    code, out, err = sample(words)
    assert code == 0, err
    assert {"out/report.html", "out/half/mine@2/a.png", "out/half/mine/b.png"} <= set(out)
    assert len(read_costs(Path("out/half/mine/costs.csv"))) == 2
    run = json.loads(Path("out/run.json").read_text())
    assert run["methods"] == ["mine@2", "mine", "ddnm@2"]
    own = run["settings"]["mine"]
    assert (own["method"], own["steps"], own["strength"]) == ("mine", 3, 0.5)
    assert Path(own["method_file"]) == Path("code/Mine.py").resolve()
    assert own["method_sha256"] == hashlib.sha256(CODE.encode()).hexdigest()
    assert "method_file" not in run["settings"]["ddnm@2"]
    assert "mine@2" in Path("out/report.html").read_text()


@pytest.mark.slow
def test_results_of_another_version_of_the_file_are_not_mixed_and_a_moved_file_is_the_same(sample):
    words = "--set mine.strength=0.5 --output out --report --overwrite"
    assert sample(f"--method {SPEC} {words}")[0] == 0
    Path("code/Mine.py").write_text(CODE + "# changed\n")
    code, _, err = sample(f"--method {SPEC} {words}")
    assert code == 2
    assert "out holds results of mine" in err
    assert "method_sha256" in err
    Path("code/Mine.py").write_text(CODE)
    assert sample(f"--method {SPEC} {words}")[0] == 0


def test_its_result_is_that_of_the_inpainter(sample, adapter):
    assert sample(f"--method {SPEC}@2 --set mine.strength=0.5 --output out")[0] == 0
    hole = box_hole(SIZE, SIZE, 3, 3, 9, 9)
    inpainter = Inpainter.from_pretrained(adapter)
    image = Image.open("in/a.png")
    plain, pulled = (inpainter(image, hole, method=m, steps=2).images[0] for m in ("ddnm", SPEC))
    assert not np.array_equal(np.asarray(plain), np.asarray(pulled))
    again = inpainter(image, hole, method="mine", steps=2).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(pulled))
    with pytest.raises(ValueError, match="there is no file"):
        inpainter(image, hole, method="code/none.py:Pull")


def test_it_is_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.sample(["--method", SPEC, "--list_methods"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "\nYour own:\nmine " in told
    assert "  mine.strength=1.0: how far known pixels are moved" in told


@pytest.mark.slow
def test_several_processes_make_the_same_files(sample, one_thread):
    words = f"--method {SPEC}@2 ddnm@2 --set mine.strength=0.5 --batch_size 1 --device cpu"
    assert sample(f"{words} --output one")[0] == 0
    code, _, err = sample(f"{words} --output two --devices 2")
    assert code == 0, err
    assert contents("one") == contents("two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method code/none.py:Pull", "there is no file"),
        ("--method code/Mine.py:Push", "defines no class 'Push'; it defines Pull"),
        ("--method code/Mine.py", "give its class too, as code/Mine.py:CLASS"),
        (f"--method {SPEC} --set ddnm.eta=0", "method 'ddnm' is not among those of --method, mine"),
        (f"--method {SPEC} --set mine.strength=2", "strength is 2.0; allowed are 0 to 1"),
    ],
)
def test_mistakes_give_one_line(sample, words, message):
    code, _, err = sample(f"{words} --output out")
    assert code == 2
    assert "Traceback" not in err
    assert message in err.splitlines()[-1]
    assert not Path("out").exists()


def test_a_failing_method_loses_only_its_own_results(sample):
    Path("code/Mine.py").write_text(CODE.replace("self.strength * pull", "pull[0, 0, 0, 0, 0]"))
    code, out, err = sample(f"--method {SPEC}@2 ddnm@2 --output out --report")
    assert code == 3
    assert "by mine@2 on half: IndexError" in err
    assert "out/half/ddnm@2/a.png" in out
