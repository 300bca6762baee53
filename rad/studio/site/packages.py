"""onnxruntime-web from the npm registry: one pinned version, checked by its hash. Its files are never in the repository."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The `integrity` of the package in the registry, base64."""

FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The module that runs on the CPU alone, and its WebAssembly."""

TIMEOUT = 600.0
"""Seconds for the download of 24 MB."""


def download(folder: Path) -> Path:
    """The package as a .tgz file in `folder`. Raises ValueError if npm is missing or fails."""
    npm, name = shutil.which("npm"), f"{PACKAGE}@{VERSION}"
    if npm is None:
        raise ValueError(
            f"npm is missing, which downloads {name}: install Node.js, or give --package FILE.tgz (`npm pack {name}`)"
        )
    command = [npm, "pack", name, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ValueError(f"npm did not download {name} within {TIMEOUT:g} seconds: try again") from None
    files = sorted(folder.glob("*.tgz"))
    if done.returncode or len(files) != 1:
        reason = next((line for line in done.stderr.splitlines() if line.strip()), f"exit code {done.returncode}")
        raise ValueError(f"npm cannot download {name}: {reason}")
    return files[0]


def check(package: Path) -> None:
    """Raise ValueError if a .tgz file is not the pinned package."""
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise ValueError(f"{package} is not {PACKAGE} {VERSION}: its SHA-512 is {digest}, expected {SHA512}")


def extract(package: Path, folder: Path) -> None:
    """Write `FILES` and the licence into `folder`. Raises ValueError for another package or a missing file."""
    from importlib.util import find_spec

    check(package)
    folder.mkdir(parents=True)
    with tarfile.open(package) as archive:
        for name in FILES:
            stored = archive.extractfile(f"package/dist/{name}")
            assert stored is not None
            (folder / name).write_bytes(stored.read())
    # The npm package has no licence file. That of the Python package covers both, built from one repository.
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        shutil.copyfile(Path(spec.origin).parent / name, folder / name)


def install(folder: Path, package: Path | None) -> None:
    """`extract` of `package`, or of a download if it is None."""
    if package is not None:
        extract(package, folder)
        return
    with tempfile.TemporaryDirectory(prefix="rad-npm-") as place:
        extract(download(Path(place)), folder)
