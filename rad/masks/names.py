"""Names of the mask sets; without torch, for help texts."""

ABOUT = {
    "box": "a box of half the height and width at a random place",
    "extreme": "all but such a box",
    "center": "a box of half the height and width in the middle",
    "half": "the right half",
    "expand": "all but a box of a quarter of the height and width in the middle",
    "lines": "every other row",
    "superres": "all but every other pixel of every other row",
    "pixels": "all but scattered single pixels, 8 %",
    "wide": "thick brush strokes, or boxes (LaMa)",
    "thin": "thin brush strokes (LaMa)",
    "blobs": "one to three silhouettes with smooth irregular outlines, as of objects",
    "perlin": "thresholded Perlin noise of any area; RAD trains on it",
    "lettering": "lines of random letters, and scratches",
    "photos": "the mixture for training on photographs: scratches, strokes, boxes, halves, Perlin noise, text",
}

ALIASES = {"thick": "wide", "every-other-line": "lines", "super-resolve": "superres", "random": "pixels"}
"""Other names of the same sets: LaMa's for "wide", and RePaint's."""


def main_names() -> list[str]:
    """All names without the aliases."""
    return list(ABOUT)
