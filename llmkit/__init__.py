"""Convert Hugging Face checkpoints to quantised GGUF files, and run them."""

__version__ = "0.1.0"
