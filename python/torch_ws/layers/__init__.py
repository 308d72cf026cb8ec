"""Layers and parametrizations that standardize their weight."""
