"""Several processes, and several runs that are parts of one: the same files as one run, even after failures."""

import multiprocessing
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample import run as program
from rad.cli.sample.fill import MOST_PIXELS, WindowCount, make_batches
from rad.cli.sample.options import read_options
from rad.cli.sample.plan import Job, Label, MethodRun, select_part
from rad.cli.sample.workers import _run
from rad.device import find_devices, threads_of_each
from rad.evaluation.layout import read_tree
from rad.evaluation.run_log import Costs, Usage, read_costs, read_run
from rad.images.sources import ImageFile
from rad.lock import WHOLE
from rad.masks.shapes import MASKS, make
from tests.conftest import SIZE, random_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """Five images, which need different numbers of windows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    for number, name in enumerate("abcde"):
        path = Path("in", f"{name}.png")
        path.parent.mkdir(exist_ok=True)
        random_image(SIZE + 3 * number, SIZE + 9, seed=number).save(path)


@pytest.fixture
def sample(adapter, capsys):
    def call(words):
        code = cli.sample(["--checkpoint", str(adapter), "--image", "in", "--size_policy", "crop", *shlex.split(words)])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err

    return call


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.png")}


def failed(err):
    return sorted(line for line in err.splitlines() if line.startswith("failed:"))


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one_with_a_failing_image(sample, monkeypatch, one_thread):
    """The last image but one can be read at first, and not when it is to be filled: the chunk of it fails."""
    lost = Path("in/d.png").read_bytes()

    def lose(*arguments):
        Path("in/d.png").unlink(missing_ok=True)
        return make_batches(*arguments)

    monkeypatch.setattr(program, "make_batches", lose)
    told, words = {}, "--mask half box --method rad@2 ddnm@2 --batch_size 2"
    for number in (1, 2):
        Path("in/d.png").write_bytes(lost)
        told[number] = sample(f"{words} --output out{number} --device cpu --devices {number}")
    assert told[1][0] == told[2][0] == 3
    assert not multiprocessing.active_children()
    assert contents("out1") == contents("out2")
    assert len(contents("out1")) == 2 * (2 * 3 + 3 + 1), "of two masks: a, b, e by two methods, their masks, the sheet"
    assert failed(told[1][2]) == failed(told[2][2])
    assert len(failed(told[1][2])) == 2 * 2 * 2, "c and d, of two methods on two masks"
    assert sorted(told[2][1]) == sorted(line.replace("out1", "out2") for line in told[1][1])
    for mask in ("half", "box"):
        for label in ("rad@2", "ddnm@2"):
            one, two = (read_costs(Path(f"out{number}", mask, label, "costs.csv")) for number in (1, 2))
            assert {name: row["nfe"] for name, row in one.items()} == {name: row["nfe"] for name, row in two.items()}
            assert all(row["seconds"] > 0 and row["peak_mib"] > 100 for row in two.values())
    runs = [read_run(Path(f"out{number}"))["runs"] for number in (1, 2)]
    assert [one["environment"]["processes"] for (one,) in runs] == [1, 2]


KILLER = """
import os, signal
from dataclasses import dataclass

from rad.sampling.method import SamplingMethod


@dataclass(frozen=True)
class Killer(SamplingMethod):
    preset_steps = 3

    def after_step(self, state, denoised, x_next):
        if "KILL" in os.environ and bool((state.task.known.amax((1, 2, 3)) <= 0).any()):  # an image that is black
            os.kill(os.getpid(), signal.SIGKILL)
        return x_next
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forget_methods")
def test_a_process_that_is_killed_loses_one_batch_and_the_rerun_completes(sample, monkeypatch, one_thread):
    Path("killer.py").write_text(KILLER)
    Image.new("RGB", (SIZE, SIZE)).save("in/c.png")
    words = "--method killer.py:Killer --mask half --batch_size 2 --num_samples 2 --output out"
    with monkeypatch.context() as patch:
        patch.setenv("KILL", "1")
        code, out, err = sample(f"{words} --device cpu --devices 2")
    assert code == 3
    assert not multiprocessing.active_children()
    assert sorted(out) == [f"out/{name}-{n}.png" for name in "abe" for n in (0, 1)]
    assert len(failed(err)) == 2
    for line, name in zip(failed(err), "cd", strict=True):
        assert f"in/{name}.png by killer on half: the process on cpu died, perhaps for lack of memory; rerun" in line
    assert err.splitlines()[-1] == "2 of 5 images failed"
    assert set(sample(words)[1]) == {f"out/{name}-{n}.png" for name in "cd" for n in (0, 1)}
    assert sample(words.replace(" out", " alone"))[0] == 0
    assert contents("out") == contents("alone")


@pytest.mark.slow
@pytest.mark.usefixtures("forget_methods")
def test_an_error_in_a_process_is_reported_and_ends_a_run_without_comparison(sample):
    Path("bad.py").write_text(KILLER.replace("return x_next", "raise LookupError('no such key')"))
    words = "--method bad.py:Killer --device cpu --devices 2 --limit 2 --batch_size 1"
    code, out, err = sample(f"{words} --mask half box --output out")
    assert (code, out) == (2, [])
    assert len(failed(err)) == 4
    assert all("LookupError: no such key (RAD_DEBUG=1 shows where)" in line for line in failed(err)), failed(err)
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="LookupError: no such key"):
        sample(f"{words} --mask half --output other")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_failed_start_of_processes_reports_the_reason(sample, adapter, monkeypatch):
    def lose_model(*arguments):
        shutil.rmtree("copy")
        return make_batches(*arguments)

    shutil.copytree(adapter, "copy")
    monkeypatch.setattr(program, "make_batches", lose_model)
    code, out, err = sample("--checkpoint copy --mask half --output out --device cpu --devices 2")
    assert (code, out) == (2, [])
    assert sum("the process on cpu cannot begin: " in line and "copy" in line for line in failed(err)) == 1
    assert sum("no process is left to fill it" in line for line in failed(err)) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("forget_methods")
def test_processes_that_die_before_their_first_batch_are_reported(sample):
    dies = "import multiprocessing\nif multiprocessing.parent_process():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    Path("dies.py").write_text(KILLER.replace("\n\n\n@dataclass", f"\n{dies}\n\n@dataclass"))
    code, out, err = sample("--method dies.py:Killer --mask half --output out --device cpu --devices 2 --batch_size 1")
    assert (code, out) == (2, [])
    assert sum("the process on cpu died before its first batch" in line for line in failed(err)) == 2
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_first_one_and_finished_files_are_kept(adapter, stop):
    """Ctrl-C reaches all processes of a terminal; SIGKILL only the first one, which cannot tell the others."""
    words = "--image in --mask half --output out --size_policy crop --device cpu --devices 2 --batch_size 1 --steps 100"
    command = [sys.executable, str(ROOT / "sample.py"), "--checkpoint", str(adapter), *words.split()]
    random_image(SIZE, SIZE).resize((SIZE * 60, SIZE)).save("in/b.png")  # is at work when the others are done
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a shell's background jobs ignore it
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed,
    ) as running:
        try:
            assert processes_of(running.pid) or not Path("/proc").exists(), "they can be seen"
            while running.poll() is None and not list(Path("out").glob("c.png")):
                time.sleep(0.05)
            os.killpg(running.pid, stop) if stop == signal.SIGINT else running.kill()
            out, err = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode == (130 if stop == signal.SIGINT else -stop), err
    assert "Traceback" not in err
    written = sorted(path.name for path in Path("out").iterdir() if path.name != WHOLE or stop == signal.SIGINT)
    assert "a.png" in written
    assert "b.png" not in written
    assert set(written) <= {"a.png", "c.png", "d.png", "e.png"}, "nothing is half written"
    if stop == signal.SIGINT:
        assert "out/a.png" in out.splitlines()
        assert err.splitlines()[-1].startswith("interrupted")
    for _ in range(300):
        if not processes_of(running.pid):
            return
        time.sleep(0.1)  # the tracker of multiprocessing ends when it finds its parent gone
    pytest.fail(f"left behind: {processes_of(running.pid)}")


def processes_of(group):
    """The commands of a process group, without those that have ended; on systems without /proc none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended just now
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append((folder / "cmdline").read_text())
    return found


def test_an_error_that_cannot_be_sent_arrives_as_a_plain_one():
    class Strange(ValueError):
        def __init__(self, first, second):
            super().__init__(f"{first} and {second}")

    def fail(error):
        raise error

    for error, kind, message in (
        (Strange("this", "that"), ValueError, "this and that"),
        (torch.OutOfMemoryError("this and that"), torch.OutOfMemoryError, "this and that"),
        (FileNotFoundError("this and that"), OSError, "this and that"),
        (KeyError("this"), RuntimeError, "KeyError: 'this' (RAD_DEBUG=1 shows where)"),
    ):
        with pytest.raises(kind) as caught:
            _run(fail, error)
        sent = pickle.loads(pickle.dumps(caught.value))
        assert (type(sent), str(sent)) == (kind, message)


@pytest.mark.parametrize("name", MASKS)
def test_a_generator_of_masks_can_be_sent(name):
    sent = pickle.loads(pickle.dumps(make(name)))
    one, two = (mask([torch.Generator().manual_seed(3)], 20, 30) for mask in (make(name), sent))
    assert torch.equal(one, two)


def test_devices_are_numbered_and_there_must_be_enough(monkeypatch):
    assert find_devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert find_devices("auto", 2) == find_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    for name, count, message in (("cuda", 3, "there are 2"), ("cuda:1", 2, "there are 0"), ("tpu", 2, "there are 0")):
        with pytest.raises(ValueError, match=message):
            find_devices(name, count)


def test_threads_are_divided(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    assert [threads_of_each(["cpu"] * count) for count in (1, 2, 4, 20)] == [9, 4, 2, 1]


def run_of(count):
    jobs = [Job(ImageFile(f"{n}.png", Path(f"{n}.png")), str(n), None, [], [], None) for n in range(count)]
    return MethodRun("m", Label("rad", "rad"), Path("out"), jobs)


def named(batches):
    return [[job.identity for job in batch.jobs] for batch in batches]


def test_batches_of_large_images_fit_into_memory():
    words = ["--checkpoint", "c", "--image", "i", "--mask", "m", "--output", "o", "--batch_size", "3"]
    options, two_samples = read_options(words), read_options([*words, "--num_samples", "2"])
    run = run_of(8)

    def count(windows, pixels):
        return WindowCount({False: Counter(first=windows)}, pixels)

    small = {job.image: count(int(job.identity), 100) for job in run.jobs if job.identity != "4"}
    batches = make_batches(5, run, small, options)
    assert named(batches) == [["0", "1", "2"], ["3", "5", "6"], ["7"]]
    assert [[windows.total() for windows in batch.windows] for batch in batches] == [[0, 1, 2], [3, 5, 6], [7]]
    assert {batch.run for batch in batches} == {5}
    sizes = [MOST_PIXELS // 2, MOST_PIXELS // 2, 1, MOST_PIXELS + 1, 1, MOST_PIXELS, 1, 1]
    large = {job.image: count(1, pixels) for job, pixels in zip(run.jobs, sizes, strict=True)}
    assert named(make_batches(0, run, large, options)) == [["0", "1"], ["2"], ["3"], ["4"], ["5"], ["6", "7"]]
    assert named(make_batches(0, run, large, two_samples)) == [["0"], ["1"], ["2"], ["3"], ["4"], ["5"], ["6", "7"]]


def test_shards_are_whole_batches_and_every_image_is_in_one():
    runs = [run_of(7), run_of(4)]
    shards = [select_part(runs, (number, 3), 2) for number in (1, 2, 3)]
    assert [[[job.identity for job in run.jobs] for run in shard] for shard in shards] == [
        [["0", "1", "6"], []],
        [["2", "3"], ["0", "1"]],
        [["4", "5"], ["2", "3"]],
    ]


def test_three_shards_and_a_last_call_are_one_run(sample):
    words = "--mask half box --method rad@2 mean --batch_size 2"
    assert sample(f"{words} --output whole")[0] == 0
    for number in (2, 3, 1):
        code, out, err = sample(f"{words} --output out --shard {number}/3")
        assert code == 0, err
        assert "out/half/methods.png" not in out
    code, out, _ = sample(f"{words} --output out")
    assert (code, out) == (0, ["out/half/methods.png", "out/box/methods.png"])
    assert contents("out") == contents("whole")
    assert len(read_run(Path("out"))["runs"]) == 1
    for one, two in zip(*(read_tree(Path(name), {}, notes=[]) for name in ("out", "whole")), strict=True):
        for label in ("rad@2", "mean"):
            assert set(one.costs[label]) == set("abcde")
            assert {n: cost.nfe for n, cost in one.costs[label].items()} == {
                n: cost.nfe for n, cost in two.costs[label].items()
            }


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--devices 0", "--devices 0"),
        ("--devices two", "--devices"),
        ("--devices 2 --device cpu:7", "there are 0"),
        ("--shard 3/2", "'3/2': give 1/4 to 4/4"),
        ("--shard 0/2", "'0/2'"),
        ("--shard 2", "'2'"),
    ],
)
def test_runs_that_cannot_be_shared_give_one_line(sample, words, part):
    code, out, err = sample(f"--mask half --output out {words}")
    assert (code, out) == (2, [])
    assert len(err.splitlines()) == 1
    assert part in err
    assert not Path("out").exists()


def test_the_last_line_of_costs_of_an_image_counts(tmp_path):
    """The file is read and written whole once a run, however many images there are."""
    path = tmp_path / "costs.csv"
    first = Costs(tmp_path)
    first.add(["image", "b"], Usage(6, 2, 3.0, 2**20), [2, 1])
    first.add(["c,\n"], Usage(5, 0, 1.0, 2**21), [0])
    inode = path.stat().st_ino
    first.add(["b"], Usage(9, 9, 9.0, 2**22), [7])
    assert path.stat().st_ino == inode
    expected = {
        "image": {"nfe": 4, "vjp": 1, "seconds": 2, "peak_mib": 1, "training": 0},
        "b": {"nfe": 9, "vjp": 9, "seconds": 9, "peak_mib": 4, "training": 0},
        "c,\n": {"nfe": 0, "vjp": 0, "seconds": 0, "peak_mib": 2, "training": 0},
    }
    assert read_costs(path) == expected
    Costs(tmp_path).add(["d"], Usage(1, 0, 1.0, 0), [1])
    assert read_costs(path) == {**expected, "d": {"nfe": 1, "vjp": 0, "seconds": 1, "peak_mib": 0, "training": 0}}
    assert len(path.read_text().splitlines()) == 1 + 4, "the line of b that no longer counts is gone"
