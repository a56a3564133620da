"""Backbones and the dual-branch network."""
