"""Backbones, batch normalisation and the model that a method trains."""
