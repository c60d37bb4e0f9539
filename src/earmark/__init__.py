"""Prove which neural network is yours."""

__version__ = "0.1.0"
