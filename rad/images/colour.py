"""Colour spaces that an image file names without an ICC profile, as ICC profiles; pixels stay unchanged.

Sources are the chunks gAMA, cHRM and cICP of a PNG, the nclx box of an AVIF, EXIF (Adobe RGB) and tags of a TIFF. A profile
in `info["icc_profile"]` is written by Pillow into every format that holds one.
"""

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

_D65 = (0.3127, 0.3290)
_BT709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)

# Recommendation ITU-T H.273. Names of transfer 1 (BT.709) and its equals are displayed like sRGB.
_PRIMARIES = {
    1: (_BT709, _D65), 2: (_BT709, _D65),
    4: ((0.67, 0.33, 0.21, 0.71, 0.14, 0.08), (0.310, 0.316)), 5: ((0.64, 0.33, 0.29, 0.60, 0.15, 0.06), _D65),
    6: ((0.63, 0.34, 0.31, 0.595, 0.155, 0.07), _D65), 7: ((0.63, 0.34, 0.31, 0.595, 0.155, 0.07), _D65),
    9: ((0.708, 0.292, 0.170, 0.797, 0.131, 0.046), _D65),
    11: ((0.68, 0.32, 0.265, 0.69, 0.15, 0.06), (0.314, 0.351)), 12: ((0.68, 0.32, 0.265, 0.69, 0.15, 0.06), _D65),
}  # fmt: skip
_TRANSFERS: dict[int, float | Literal["sRGB"]] = {
    1: "sRGB", 2: "sRGB", 6: "sRGB", 13: "sRGB", 14: "sRGB", 15: "sRGB", 4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6,
}  # fmt: skip


@dataclass(frozen=True)
class ColourSpace:
    """An RGB space: chromaticities xy of red, green, blue and white, and the exponent from values to light, or "sRGB"."""

    primaries: tuple[float, ...] = _BT709
    white: tuple[float, ...] = _D65
    exponent: float | Literal["sRGB"] = "sRGB"

    def is_srgb(self) -> bool:
        """Whether it equals sRGB within the rounding of common files; an exponent within 5 % of 2.2 counts too."""
        near = self.exponent == "sRGB" or abs(self.exponent / 2.2 - 1) < 0.05
        return near and bool(np.allclose((*self.primaries, *self.white), (*_BT709, *_D65), rtol=0, atol=0.01))


ADOBE_RGB = ColourSpace((0.64, 0.33, 0.21, 0.71, 0.15, 0.06), _D65, 563 / 256)


def named_space(image: Image.Image) -> ColourSpace | None:
    """The colour space that a file of `read_file` names by other means than an ICC profile; None: it names none.

    Raises ValueError for HDR (PQ, HLG) and for unknown spaces of cICP and nclx.
    """
    info = image.info
    if "cicp" in info:
        return _coded_space(*info["cicp"])
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        white_and_primaries = info.get("chromaticity", (*_D65, *_BT709))
        gamma = info.get("gamma") or 1 / 2.2
        near = abs(1 / gamma / 2.2 - 1) < 0.05
        return ColourSpace(white_and_primaries[2:], white_and_primaries[:2], "sRGB" if near else 1 / gamma)
    tags = getattr(image, "tag_v2", {})
    if len(tags.get(319, ())) == 6:
        white = tuple(map(float, tags.get(318, _D65)))
        return ColourSpace(tuple(map(float, tags[319])), white)
    return ADOBE_RGB if _is_adobe_rgb(image) else None


def _coded_space(primaries: int, transfer: int) -> ColourSpace:
    if transfer in (16, 18):
        kind = "PQ" if transfer == 16 else "HLG"
        raise ValueError(f"its pixels are HDR ({kind}), which 8-bit RGB cannot hold: convert it to sRGB")
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise ValueError(f"its colour space (primaries {primaries}, transfer {transfer}) is unknown: save it as sRGB")
    chromaticities, white = _PRIMARIES[primaries]
    return ColourSpace(chromaticities, white, _TRANSFERS[transfer])


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF data of DCF name Adobe RGB: InteroperabilityIndex R03, or ColorSpace 2."""
    return str(_exif(image, 0xA005, 1)).startswith("R03") or _exif(image, 0x8769, 0xA001) == 2


def is_uncalibrated(image: Image.Image) -> bool:
    """Whether EXIF data say that the colours are not sRGB, and the file does not say which they are."""
    known = image.info.get("icc_profile") or named_space(image) is not None
    return not known and image.mode in ("RGB", "RGBA") and _exif(image, 0x8769, 0xA001) == 0xFFFF


def _exif(image: Image.Image, directory: int, tag: int) -> object:
    try:
        return image.getexif().get_ifd(directory).get(tag)
    except Exception:  # damaged EXIF data, of which Pillow raises almost anything, say nothing
        return None


def to_profile(space: ColourSpace) -> bytes:
    """An ICC profile (version 2, matrix and curve). Raises ValueError for chromaticities that span no space."""
    name = "Adobe RGB (1998) compatible" if space == ADOBE_RGB else "RGB space of the image file"
    text = name.encode("ascii") + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    columns = _matrix(space).T
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"Public domain\0",
        b"wtpt": _xyz(_D50),
        **{name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(space.exponent)),
    }
    table, body, places = struct.pack(">I", len(tags)), b"", {}
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        if data not in places:  # equal curves are stored once
            places[data] = start + len(body)
            body += data + bytes(-len(data) % 4)
        table += tag + struct.pack(">II", places[data], len(data))
    head = struct.pack(">I4s4s4s4s4s12s4s", start + len(body), b"", b"\x02\x10\0\0", b"mntr", b"RGB ", b"XYZ ",
                       struct.pack(">6H", 2000, 1, 1, 0, 0, 0), b"acsp")  # fmt: skip
    return head + bytes(28) + _fixed(_D50) + bytes(48) + table + body


_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _matrix(space: ColourSpace) -> np.ndarray:
    """(3,3) from linear RGB to XYZ, adapted to the white D50 of ICC by Bradford's transform."""
    x, y = np.reshape((*space.primaries, *space.white), (4, 2)).T
    if not (np.isfinite([*x, *y]).all() and (y > 0).all()):
        raise ValueError("its colour space has impossible primaries: save it as sRGB")
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    try:
        matrix = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
    except np.linalg.LinAlgError:
        raise ValueError("its colour space has impossible primaries: save it as sRGB") from None
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ xyz[:, 3])
    matrix = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ matrix
    if np.abs(matrix).max() > 8:
        raise ValueError("its colour space has impossible primaries: save it as sRGB")
    return matrix


def _fixed(values: np.ndarray) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * float(value)) for value in values))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _curve(exponent: float | Literal["sRGB"]) -> bytes:
    if exponent == "sRGB":
        value = np.linspace(0, 1, 1024)
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.rint(65535 * light).astype(int))
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * min(max(exponent, 1 / 256), 255)))
