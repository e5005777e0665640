"""Quantize neural networks without any training data.

    from zsq_lab import QuantConfig, quantize, synthesize

    result = quantize(model, QuantConfig(weight_bits=4, activation_bits=4), recipe="distilled", image_shape=(3, 32, 32))
    result.model, result.report
"""
from importlib import import_module

__version__ = "0.1.0"
_HOME = {"QuantConfig": "layers", "quantize": "recipes", "setup": "lab", "sweep": "sweeps", "synthesize": "recipes"}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Public names are imported when first used: `python -m zsq_lab doctor` must run where torch is missing."""
    if name not in _HOME:
        raise AttributeError(f"module 'zsq_lab' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
