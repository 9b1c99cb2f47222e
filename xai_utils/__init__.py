"""Explain a language model and its adapted twin, and say how far each number can be trusted."""

__version__ = "0.1.0"
