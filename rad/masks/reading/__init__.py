"""What a mask file means: its options, the channel that is the mask, and its values in black and white."""
