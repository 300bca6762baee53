"""The names that help texts list, without the modules that hold them: importing these loads torch. A test compares them."""

METHODS = (
    "rad", "tdpaint", "growrad", "replacement", "blended", "blended_latent", "differential", "repaint", "lanpaint",
    "ddrm", "ddnm", "diffpir", "daps", "ding", "flowchef", "flowdps", "pnpflow", "reddiff", "mcg", "dps", "psld",
    "resample", "pigdm", "gradpaint", "copaint", "vipaint", "pilot", "mcgdiff", "m2s", "grow", "mean", "biharmonic",
)  # fmt: skip


MASKS = (
    "box", "extreme", "center", "half", "expand", "lines", "superres", "pixels", "wide", "thin", "blobs", "perlin", "lettering",
    "photos",
)  # fmt: skip


SOLVERS = ("ddpm", "ddim", "dpm++2m")


SPACINGS = ("even", "trailing", "quad", "logsnr", "official")
