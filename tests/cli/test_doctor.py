"""`python -m rad.cli.doctor`: every check can fail, failures say what to do, and the proof proves."""

import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rad.cli import doctor


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no check may open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def environment(capsys) -> tuple[int, list[str]]:
    code = doctor.main(["--no_proof"])
    return code, capsys.readouterr().out.splitlines()


def test_the_environment_is_a_line_a_check_without_the_name_of_the_home(capsys, monkeypatch, tmp_path):
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
    code, lines = environment(capsys)
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


def test_a_package_that_is_broken_or_too_new_is_told_with_what_to_do(capsys, monkeypatch):
    original, version = doctor.import_module, doctor.metadata.version

    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nsecond line")
        return original(name)

    monkeypatch.setattr(doctor, "import_module", broken)
    monkeypatch.setattr(doctor, "_bounds", lambda: {"jsonargparse": ">=4.37,<5", "peft": ">=0.15,<1"})
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "5.0.1" if name == "jsonargparse" else version(name))
    code, lines = environment(capsys)
    failed = [line for line in lines if line.startswith("FAILED")]
    assert code == 1
    assert len(failed) == 2
    assert "torchvision cannot be imported (RuntimeError: operator torchvision::nms does not exist" in failed[0]
    assert "jsonargparse 5.0.1 is not >=4.37,<5" in failed[1]
    assert all("pip install" in line for line in failed)
    assert lines[-1].startswith("2 of ")
    assert any(line.startswith("ok      peft ") for line in lines), "the other checks are done"


def test_a_full_disk_is_told(capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    code, lines = environment(capsys)
    assert code == 1
    assert [line[:22] for line in lines if line.startswith("FAILED")] == ["FAILED  disk: 1 MiB fr"] * 2


def test_accelerators_are_described_and_tried(capsys, monkeypatch):
    """As on a machine with two GPUs, the second of which is broken."""
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
    code, lines = environment(capsys)
    assert code == 1
    assert "ok      device cuda:0: Card 0, 8.0 GiB, 1.0 GiB free, no bf16: use --precision 32" in lines
    assert [line for line in lines if "cuda:1" in line and "it is broken" in line and line.startswith("FAILED")]


def test_the_home_directory_is_cut_out_at_its_whole_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    told = doctor.without_home("/home/ann/x /home/anna/x (/home/ann) /home/ann-2 /mnt/home/ann: /home/ann")
    assert told == "~/x /home/anna/x (~) /home/ann-2 /mnt~: ~"
    monkeypatch.setenv("HOME", "/")
    assert doctor.without_home("/usr/bin") == "/usr/bin"


def test_one_bit_of_one_tensor_is_a_difference(adapter, tmp_path):
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


def test_a_training_that_does_not_begin_is_shown_with_its_last_lines(capsys, monkeypatch):
    def start(folder, name, log, *words):
        program = "import sys; print('why it ended'); sys.exit(3)"
        return subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log, text=True)

    monkeypatch.setattr(doctor, "_start", start)
    monkeypatch.setattr(doctor, "describe", lambda report: None)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED  proof: training ended with exit code 3: the reason is in its last lines" in lines
    assert "        | why it ended" in lines
    assert not [line for line in lines if line.startswith("ok")]


@pytest.mark.slow
def test_the_proof(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "describe", lambda report: None)
    assert doctor.main([]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "bit for bit" in out
    assert "sampling on cpu: 192 known pixels untouched, 64 filled" in out
    assert out.endswith("all 3 checks passed\n") or torch.accelerator.is_available()
    assert list(tmp_path.iterdir()) == [], "it works in a folder of its own"
