"""Quantize neural networks without any training data.

    from zsq_lab import QuantConfig, quantize, synthesize

    result = quantize(model, QuantConfig(weight_bits=4, activation_bits=4), recipe="distilled", image_shape=(3, 32, 32))
    result.model, result.report
"""
from .lab import setup
from .layers import QuantConfig
from .recipes import quantize, synthesize

__version__ = "0.1.0"
__all__ = ["QuantConfig", "quantize", "setup", "synthesize"]
