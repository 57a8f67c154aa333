"""Other deployment formats than GGUF and ONNX Runtime's: a folder with the model, its tokenizer and `llmkit.json`.

base           what a format is, and what one is given to be built from
registry       the formats by name
packages       what is installed
target         plans the folder: weights, settings and tokenizer
build          carries a plan out
torch_arrays   the decoder's operations in torch
The others are one file each, named after their format.
"""
