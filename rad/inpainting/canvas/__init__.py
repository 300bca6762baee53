"""Images of any size: windows over their holes, outpainting, and the final composite."""
