"""Models on the Hugging Face hub: `download` finds adapters by USER/NAME, `upload` publishes folders, `card` writes metadata."""
