"""GGUF files: values, a strict memory-mapped reader, the layout of a new file."""

from llmkit.formats.gguf.layout import GGUFLayout, plan_layout
from llmkit.formats.gguf.reader import GGUFFile, Split, open_gguf
from llmkit.formats.gguf.values import (
    Value,
    ValueType,
    array,
    boolean,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    string,
    u8,
    u16,
    u32,
    u64,
)

__all__ = [
    "GGUFFile",
    "GGUFLayout",
    "Split",
    "Value",
    "ValueType",
    "array",
    "boolean",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "open_gguf",
    "plan_layout",
    "string",
    "u8",
    "u16",
    "u32",
    "u64",
]
