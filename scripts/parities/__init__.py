"""Every model family on a tiny random model: llmkit's files against transformers and llama.cpp's own converter.

checking   one family from its row to a verdict
families   the table: one row a family; row says what is in one, settings what several share
tiny       makes the model of a row, with sentencepieces for tokenizers of that kind
rewrites   checkpoints of families that transformers does not have, made of others'
published  checkpoints as published, where transformers now saves others
logits     runs it in transformers and in llama.cpp
states     the same for encoders, which have hidden states and no logits
tokens     compares tokens
back       makes a checkpoint of the file again, and compares it
files      compares tensors and metadata with those of the peer's converter
explained  where they differ, and why that is as it should be
"""
