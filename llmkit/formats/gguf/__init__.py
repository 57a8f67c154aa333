"""GGUF files: values, a strict memory-mapped reader, the layout of a new file."""
