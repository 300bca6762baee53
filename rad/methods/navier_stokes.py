"""Navier-Stokes inpainting: lines of equal brightness continue into the hole, as in a fluid. Uses no network.

Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting (Bertalmio, Bertozzi, Sapiro, CVPR 2001), in OpenCV's implementation
`cv2.inpaint`. Needs the extra `opencv`.
"""

from dataclasses import dataclass

from rad.methods.telea import Telea


@dataclass(frozen=True)
class NavierStokes(Telea):
    """As `Telea`, with OpenCV's other algorithm.

    OpenCV marches inwards once and averages along lines of equal brightness; it does not solve the paper's equations in time.
    """

    paper = "Bertalmio, Bertozzi, Sapiro 2001, in OpenCV"
    algorithm = "INPAINT_NS"
