"""Readers and writers of container formats: bounds-checked, nothing is executed."""
