"""`rad doctor`: every check can fail, and failures name a remedy."""

import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rad.cli import doctor, environment


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no check may open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def describe(capsys) -> tuple[int, list[str]]:
    code = doctor.main(["--no_proof"])
    return code, capsys.readouterr().out.splitlines()


def test_the_environment_has_a_line_per_check_without_the_home_directory(capsys, monkeypatch, tmp_path):
    import huggingface_hub

    home = tmp_path / "home of somebody"
    cache = home / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "weights").write_bytes(bytes(3 * 2**20))
    (cache / "weights").symlink_to(cache / "blobs" / "weights")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(home)
    code, lines = describe(capsys)
    assert code == 0, lines
    assert all(line.startswith(("ok      ", "note    ")) for line in lines[:-1])
    checks = sum(line.startswith("ok") for line in lines)
    assert lines[-1] == f"all {checks} checks passed"
    for package in doctor.PACKAGES:
        assert sum(line.startswith(f"ok      {package} ") for line in lines) == 1
    assert f"ok      torch {torch.__version__}" in "\n".join(lines)
    assert "hub: offline (HF_HUB_OFFLINE=1), cache ~/cache, 3 MiB" in "\n".join(lines), "a link is not counted again"
    assert str(home) not in "\n".join(lines)
    assert any(line.endswith("free for the working folder ~") for line in lines)


def test_a_broken_package_and_an_excluded_version_fail_with_a_remedy(capsys, monkeypatch):
    original, version = doctor.import_module, doctor.metadata.version

    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nsecond line")
        return original(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    monkeypatch.setattr(environment, "version_bounds", lambda: {"jsonargparse": ">=4.37,<5", "peft": ">=0.15,<1"})
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "5.0.1" if name == "jsonargparse" else version(name))
    code, lines = describe(capsys)
    failed = [line for line in lines if line.startswith("FAILED")]
    assert code == 1
    assert len(failed) == 2
    assert "torchvision cannot be imported (RuntimeError: operator torchvision::nms does not exist" in failed[0]
    assert "jsonargparse 5.0.1 is not >=4.37,<5" in failed[1]
    assert all("pip install" in line for line in failed)
    assert lines[-1].startswith("2 of ")
    assert any(line.startswith("ok      peft ") for line in lines), "the other checks are done"


def test_versions_outside_the_tested_ones_are_named(capsys, monkeypatch):
    version = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.99" if name == "peft" else version(name))
    monkeypatch.setattr(environment, "version_bounds", dict)
    tested = {"peft": ("0.15.0", "0.21.2"), "noise": ("1.2.2", "1.2.2")}
    monkeypatch.setattr(environment, "tested_versions", lambda: tested)
    monkeypatch.setattr(environment, "TESTED", ((3, 10), (3, 99)))
    code, lines = describe(capsys)
    assert code == 0, "a note, since newer versions usually work"
    assert "ok      peft 0.99, outside the tested 0.15.0 to 0.21.2" in lines
    assert "ok      noise 1.2.2, tested 1.2.2 to 1.2.2" in lines
    assert any("; outside the tested versions (3.10, 3.99)" in line for line in lines) == (
        sys.version_info[:2] != (3, 10)
    )


def test_tested_versions_cover_every_required_package_and_lie_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.version import Version

    project = (doctor.ROOT / "pyproject.toml").read_text()
    tested = environment.tested_versions()
    required = [
        Requirement(line.strip(' ",')) for line in project.split("dependencies = [")[1].split("]\n")[0].splitlines()[1:]
    ]
    assert len(required) > 15
    for requirement in required:
        lowest, highest = tested[requirement.name]
        assert Version(lowest) <= Version(highest)
        assert all(requirement.specifier.contains(version) for version in (lowest, highest)), requirement.name
        least = min(Version(bound.version) for bound in requirement.specifier)
        assert Version(lowest) == least or Version(lowest).release[: len(least.release)] == least.release


def test_a_full_disk_fails(capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    code, lines = describe(capsys)
    assert code == 1
    assert [line[:22] for line in lines if line.startswith("FAILED")] == ["FAILED  disk: 1 MiB fr"] * 2


def test_accelerators_are_described_and_tested(capsys, monkeypatch):
    """On a simulated machine with two GPUs, the second one broken."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.random.fork_rng(devices=[]))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")

    def find(name):
        if name == "cuda:1":
            raise ValueError("device 'cuda:1' cannot be used (it is broken)")
        return name

    monkeypatch.setattr("rad.device.find_device", find)
    code, lines = describe(capsys)
    assert code == 1
    assert "ok      device cuda:0: Card 0, 8.0 GiB, 1.0 GiB free, no bf16: use --precision 32" in lines
    assert [line for line in lines if "cuda:1" in line and "it is broken" in line and line.startswith("FAILED")]


def test_only_the_full_path_of_the_home_directory_is_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    text = doctor.without_home("/home/ann/x /home/anna/x (/home/ann) /home/ann-2 /mnt/home/ann: /home/ann")
    assert text == "~/x /home/anna/x (~) /home/ann-2 /mnt~: ~"
    monkeypatch.setenv("HOME", "/")
    assert doctor.without_home("/usr/bin") == "/usr/bin"


def test_one_bit_or_a_missing_tensor_is_a_difference(adapter, tmp_path):
    assert doctor.differences(adapter, adapter) == []
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    weights = load_file(other / "adapter_model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(torch.int32).flatten()[0] ^= 1
    save_file(weights, other / "adapter_model.safetensors")
    assert doctor.differences(adapter, other) == [name]
    del weights[name]
    save_file(weights, other / "adapter_model.safetensors")
    assert doctor.differences(other, adapter) == [name]


def test_a_failed_training_shows_its_last_lines(capsys, monkeypatch):
    def start(folder, name, log, *words):
        program = "import sys; print('reason'); sys.exit(3)"
        return subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log, text=True)

    monkeypatch.setattr(doctor, "_start", start)
    monkeypatch.setattr(doctor, "describe", lambda report: None)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED  proof: training ended with exit code 3: see the last lines of its log" in lines
    assert "        | reason" in lines
    assert not [line for line in lines if line.startswith("ok")]


@pytest.mark.slow
def test_the_proof_passes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "describe", lambda report: None)
    assert doctor.main([]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "bit for bit" in out
    assert "sampling on cpu: 192 known pixels unchanged, 64 filled" in out
    assert out.endswith("all 3 checks passed\n") or torch.accelerator.is_available()
    assert list(tmp_path.iterdir()) == [], "it uses a temporary folder"
