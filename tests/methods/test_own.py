"""Methods outside the package: known by a name once registered or loaded from a file, and refused with a reason."""

import hashlib
import pickle
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch

import rad.methods
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS, own
from rad.methods.own import file_of, is_own, load, loaded_from, register, split_file
from rad.methods.registry import OWN, create, find, table
from rad.rng import KeyedNoise
from rad.sampling.method import CustomSampler, SamplingMethod, setting
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, make_world

CODE = '''
from dataclasses import dataclass, replace

from rad.sampling.method import SamplingMethod, setting


@dataclass(frozen=True)
class Mine(SamplingMethod):
    """The estimate takes over the known pixels."""

    preset_steps = 7
    strength: float = setting(1.0, "how far", low=0, high=1)

    def on_denoised(self, state, denoised):
        pull = (1 - state.task.hole) * (state.task.known - denoised.x0)
        return replace(denoised, x0=denoised.x0 + self.strength * pull)


def helper():
    pass
'''
NO_DEFAULT = CODE.replace('setting(1.0, "how far", low=0, high=1)', "field()").replace("import ", "import field, ", 1)


pytestmark = pytest.mark.usefixtures("forget_methods")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "MyFill.py"
    path.write_text(CODE)
    return path


def test_a_file_is_a_method_by_its_name_in_lower_case(file):
    method = create(f"{file}:Mine", {"strength": "0.5"})
    assert method.name == "myfill"
    assert find("myfill") is type(method)
    assert create("myfill", {"strength": "0.5"}) == method
    lines = table().splitlines()
    assert lines[lines.index(OWN) + 1].split()[0] == "myfill"
    assert "  myfill.strength=1.0: how far" in lines
    assert is_own(type(method))
    assert not any(is_own(kind) for name, kind in METHODS.items() if name != "myfill")
    found = file_of(type(method))
    assert found is not None
    assert (found.path, found.sha256) == (file, hashlib.sha256(CODE.encode()).hexdigest())
    assert file_of(METHODS["rad"]) is None


def test_a_file_runs_once_until_it_changes(file):
    first = load(f"{file}:Mine")
    assert load(f"{file}:Mine") is first
    file.write_text(CODE.replace("preset_steps = 7", "preset_steps = 8"))
    second = load(f"{file}:Mine")
    assert (first.preset_steps, second.preset_steps) == (7, 8)
    assert METHODS["myfill"] is second


def test_an_instance_goes_to_a_process_that_has_loaded_the_file(file):
    kind = load(f"{file}:Mine")
    sent = pickle.dumps(kind())
    arguments = loaded_from(kind)
    assert arguments is not None
    own._loaded.clear()
    del METHODS["myfill"], sys.modules[kind.__module__]  # as in a new process
    load(arguments[0], sha256=arguments[1])
    assert pickle.loads(sent).preset_steps == 7
    assert loaded_from(METHODS["rad"]) is None
    file.write_text(CODE + "\n")
    with pytest.raises(ValueError, match="changed while the run was starting"):
        load(arguments[0], sha256=arguments[1])


def test_a_file_may_register_several_methods_by_name(file):
    two = CODE.replace("@dataclass", "@rad.methods.register\n@dataclass").replace("class Mine", "class Other")
    named = two.replace("@rad.methods.register", "@lambda kind: rad.methods.register(kind, name='other-2')")
    file.write_text("import rad.methods\n" + CODE + named)
    assert load(f"{file}:Other")().name == "other-2"
    assert load(f"{file}:Mine")().name == "myfill"
    assert find("other-2") is load(f"{file}:Other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{file}:Yours", "defines no class 'Yours'; it defines Mine, helper"),
        ("{file}:SamplingMethod", "defines no class 'SamplingMethod'"),
        ("{file}:helper", "helper is not a method: derive it from SamplingMethod or CustomSampler"),
        ("{file}x.py:Mine", "there is no file"),
        ("{file}", "is not known: give its class too, as .*MyFill.py:CLASS"),
    ],
)
def test_a_class_that_is_no_method_is_refused(file, text, message):
    with pytest.raises(ValueError, match=message):
        find(text.format(file=file))
    assert "myfill" not in METHODS


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("rad.py", CODE, "the method name 'rad' is taken by rad.methods.rad.RAD: rename the file"),
        ("a b.py", CODE, "method name 'a b': allowed are lower-case letters"),
        ("bad.py", "1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("bad.py", "def", "cannot be loaded: SyntaxError"),
        ("bad.py", "import sys; sys.exit(3)", "cannot be loaded: SystemExit: 3"),
        ("bad.py", CODE.replace("@dataclass(frozen=True)", ""), "Mine is not a dataclass"),
        ("bad.py", NO_DEFAULT, "without a default: give strength a default"),
        ("bad.py", CODE.replace("SamplingMethod", "CustomSampler"), r"Mine has no run\(\)"),
    ],
)  # fmt: skip
def test_an_unusable_file_is_refused_with_the_reason(tmp_path, name, code, message):
    (tmp_path / name).write_text(code)
    with pytest.raises(ValueError, match=message):
        find(f"{tmp_path / name}:Mine")
    assert not {"bad", "a b"} & set(METHODS)
    assert METHODS["rad"].__module__ == "rad.methods.rad"


def test_two_files_cannot_have_the_same_name(file, tmp_path):
    load(f"{file}:Mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "myfill.py").write_text(CODE)
    with pytest.raises(ValueError, match=r"the name 'myfill' is taken by .*MyFill\.py: rename one"):
        load(f"{tmp_path / 'other' / 'myfill.py'}:Mine")


def test_a_class_is_registered_from_python():
    @dataclass(frozen=True)
    class Here(SamplingMethod):
        pull: float = setting(0.5, "nothing", low=0)

    assert rad.methods.register(Here) is Here
    assert Here().name == "test_own"
    with pytest.raises(ValueError, match="is registered as 'test_own' already"):
        register(Here, name="another")
    again = dataclass(frozen=True)(type("Here", (SamplingMethod,), {"__module__": Here.__module__}))
    again.__qualname__ = Here.__qualname__
    register(again)  # as a notebook that runs a cell again
    assert find("test_own") is again

    @dataclass(frozen=True)
    class Derived(Here):
        pass

    register(Derived, name="derived")
    assert (Derived().name, again().name) == ("derived", "test_own")
    with pytest.raises(ValueError, match="the method name 'ddnm' is taken"):
        register(dataclass(frozen=True)(type("New", (Here,), {})), name="ddnm")
    with pytest.raises(ValueError, match="method name 'a@2': allowed are"):
        register(Derived, name="a@2")
    with pytest.raises(ValueError, match="3 is not a method"):
        register(3)  # pyright: ignore[reportArgumentType]


def test_files_and_names_are_distinguished():
    assert split_file("a/mine.py:Mine@20,eta=0") == ("a/mine.py:Mine", "@20,eta=0")
    assert split_file("a@b,c/mine.py:Mine") == ("a@b,c/mine.py:Mine", "")
    for text in ("rad@20", "rad,eta=0", "mine.py", "mine.py:", "mine.py@2"):
        assert split_file(text) == ("", text)


# ---- what a method may rely on -------------------------------------------------------------------------

WORLD = make_world()


def noisy(seed=0):
    return torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_only_a_kept_estimate_is_used_again_and_only_for_the_same_values():
    now = Uniform(linear_betas()).noise(torch.tensor([500]))
    denoiser, x = CountedDenoiser(WORLD.denoiser), noisy()
    denoiser.denoise(x, now)
    denoiser.reuse(x, now)
    assert denoiser.nfe == 2, "nothing was kept"
    kept = denoiser.denoise(x, now, keep=True)
    assert denoiser.reuse(x.clone(), now) is kept
    assert denoiser.nfe == 3
    denoiser.reuse(x, now)
    assert denoiser.nfe == 4, "it is used once"
    kept = denoiser.denoise(x, now, keep=True)
    x += 1
    fresh = denoiser.reuse(x, now)
    assert torch.equal(fresh.x0, WORLD.denoiser.denoise(x, now).x0)
    assert not torch.equal(fresh.x0, kept.x0)
    denoiser.denoise(x, now, keep=True)
    denoiser.reuse(x, replace(now))
    assert denoiser.nfe == 8, "another level"
    denoiser.denoise(x, now, keep=True)
    with torch.enable_grad():
        assert denoiser.reuse(x.clone().requires_grad_(), now).x0.requires_grad, "a gradient needs its own call"


@pytest.mark.parametrize("keep", [False, True])
def test_after_a_change_of_x_in_place_the_estimate_is_new(keep):
    """Before the step x is denoised and then moved in the same memory: the step must use the estimate of the moved x."""
    seen = []

    class InPlace(SamplingMethod):
        def before_denoise(self, state):
            x = state.x.clone()
            state.denoiser.denoise(x, state.now, keep=keep)
            x.mul_(0.5)
            return x

        def on_denoised(self, state, denoised):
            seen.append(torch.equal(denoised.x0, WORLD.denoiser.denoise(state.x, state.now).x0))
            return denoised

    with KeyedNoise(0, ["a"]) as noise:
        task = Task.from_image(WORLD.y, WORLD.hole)
        sample = Sampler(Uniform(linear_betas()), InPlace(), steps=3)(WORLD.denoiser, task, noise=noise)
    assert seen == [True] * 3
    assert sample.nfe == 6


def test_work_within_a_run_is_counted_by_it():
    now = Uniform(linear_betas()).noise(torch.tensor([500]))
    outer = CountedDenoiser(WORLD.denoiser)
    inner, second = CountedDenoiser(outer), CountedDenoiser(WORLD.denoiser, within=outer)
    with torch.enable_grad():
        x = noisy().requires_grad_()
        inner.gradient(inner.denoise(x, now).x0.sum(), x, passes=2)
    second.denoise(x, now)
    assert [(one.nfe, one.vjp) for one in (inner, second, outer)] == [(1, 2), (1, 0), (2, 2)]


def test_no_method_changes_its_class_or_the_counter():
    """What `grow` takes from the wrapped method is read, not written; it is the default's for the class."""
    grow = METHODS["grow"]
    before = {name: getattr(grow, name) for name in ("preset_steps", "needs_grad", "weights", "uses_eta", "preset_eta")}
    dps = create("grow", {"method": "dps"})
    assert (dps.needs_grad, dps.preset_steps) == (True, 1000)
    assert vars(dps).keys() == {one.name for one in fields(dps)}
    assert before == {name: getattr(grow, name) for name in before}
    assert issubclass(grow, CustomSampler)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"after_step": lambda *_: None}, r"after_step\(\) of method 'mine' is None; expected a tensor \(2, 1, 8, 8\)"),
        ({"after_step": lambda *inputs: inputs[-1].mean(0, keepdim=True)}, r"is Tensor \(1, 1, 8, 8\)"),
        ({"on_start": lambda _, state: state.x.numpy()}, r"on_start\(\) .* is ndarray"),
        ({"before_denoise": lambda _, state: state.x[0]}, r"before_denoise\(\)"),
        ({"on_denoised": lambda _, __, denoised: denoised.x0}, "expected a Denoised"),
        ({"on_denoised": lambda _, __, denoised: replace(denoised, x0=denoised.x0[:1])}, "x0 of on_denoised"),
        ({"plan": lambda _, timesteps: timesteps[:-1]}, "does not end in -1"),
        ({"plan": lambda *_: []}, "does not end in -1"),
    ],
)
def test_wrong_results_of_hooks_are_named(hooks, message):
    mine = dataclass(frozen=True)(type("Mine", (SamplingMethod,), hooks))
    mine.registered_name = "mine"
    with pytest.raises(ValueError, match=message):
        run_on_zeros(mine())


def test_a_wrong_result_of_an_own_loop_is_named():
    @dataclass(frozen=True)
    class Loop(CustomSampler):
        def run(self, run):
            return run.task.known[0]

    with pytest.raises(ValueError, match=r"the result of method .* is Tensor \(1, 8, 8\)"):
        run_on_zeros(Loop())


def run_on_zeros(method):
    task = Task.from_image(torch.zeros(2, 1, 8, 8, dtype=DOUBLE), torch.ones(2, 1, 8, 8))
    with KeyedNoise(0, ["a", "b"]) as noise:
        return Sampler(Uniform(linear_betas()), method, steps=3)(WORLD.denoiser, task, noise=noise)


@pytest.mark.parametrize(
    ("name", "close"), [("on_denoise", "on_denoised"), ("preset_step", "preset_steps"), ("need_grad", "needs_grad")]
)
def test_misspelt_hooks_warn(name, close):
    with pytest.warns(UserWarning, match=f"{name} has no effect: did you mean {close}"):
        type("Mine", (SamplingMethod,), {name: None})
