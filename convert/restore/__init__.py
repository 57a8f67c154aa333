"""The way back: a GGUF model as a checkpoint that transformers loads.

hparams    hyper-parameters from the metadata
tensors    tensors of the checkpoint from those of the file, by the rules that made the file
tokenizer  tokenizer.json from the metadata
plan       all of it as a plan, executed like any other
"""
