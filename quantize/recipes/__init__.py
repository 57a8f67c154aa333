"""Recipes: which type each tensor of a file gets.

A recipe is one of llama.cpp's file types (`enum llama_ftype`). The choices per tensor are those of llama-quantize
(llama.cpp, src/llama-quant.cpp), expressed on GGUF tensor names; a type whose block does not divide a row falls
back to another, as there, but never silently: every `Choice` carries what was wanted and why it was not taken.

table.py has the recipes, mixtures.py their rules, tensors.py what names tell, options.py what users may ask for,
choose.py brings them together.
"""

from __future__ import annotations

from llmkit.quantize.recipes.choose import Choice, choose_types, unused_options
from llmkit.quantize.recipes.mixtures import ModelShape
from llmkit.quantize.recipes.options import TypeOptions, parse_tensor_type, parse_type
from llmkit.quantize.recipes.table import PLAIN_TYPES, RECIPES, SHORT_NAMES, WRITABLE_TYPES, Recipe, find_recipe

__all__ = [
    "PLAIN_TYPES",
    "RECIPES",
    "SHORT_NAMES",
    "WRITABLE_TYPES",
    "Choice",
    "ModelShape",
    "Recipe",
    "TypeOptions",
    "choose_types",
    "find_recipe",
    "parse_tensor_type",
    "parse_type",
    "unused_options",
]
