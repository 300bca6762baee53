"""`rad export` and `rad push`: trained models for diffusers, peft and the Hugging Face hub."""
