"""Quantisation: block schemes and the recipes that choose a scheme for each tensor."""
