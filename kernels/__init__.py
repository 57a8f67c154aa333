"""Numba primitives on plain arrays; no scheme names here."""
