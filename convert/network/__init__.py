"""A decoder apart from any container: what all graphs are made of.

source     a checkpoint or GGUF file, as a family with its tensors found
weights    the tensors that graphs use: those of the family, some of them joined
rotary     tables of sines and cosines
arrays     the operations that a tensor framework brings
cache      where keys and values come from and go
decoder    the function of a model, written once against these operations
"""
