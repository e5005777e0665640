"""A quantized model in a small file: weights packed at their own bits, scales and biases beside them (safetensors).

What comes back computes the same to the last bit: a weight is stored as its grid point and its scale, and that is all
the forward pass ever used. The memory of BatchNorm, which only the making of images needs, is left out.
Any tool that reads safetensors can read the file; `packing` says in which order the bits lie.
"""
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints import ForeignNetwork, empty_student
from .folding import FoldedBatchNorm, replace_module
from .layers import QuantLayer, quant_layers
from .packing import pack, unpack
from .quantizer import Quantizer, dequantize
from .weight_file import read_weights, write_weights

FORMAT = "zsq-lab packed 1"
INPUTS = ("input_scales", "input_zero_points")  # of all quantized layers' call sites, in the order of the forward pass


@torch.no_grad()
def save_packed(student: nn.Module, path: Path, facts: dict) -> int:
    """Write a quantized model and its facts, atomically; returns the file's size in bytes.

    facts: with `config` and `image_shape`, as `quantize` reports them, and `model`, the lab's name of the network.
    Raises ValueError for a model without a quantized layer.
    """
    layers, values = quant_layers(student), student.state_dict()
    if not layers:
        raise ValueError("the model has no quantized layer: quantize it first")
    inputs = [q for layer in layers.values() for q in layer.input_quantizers]
    stored = {INPUTS[0]: torch.stack([q.scale.reshape(()) for q in inputs]),
              INPUTS[1]: torch.stack([q.zero_point.reshape(()) for q in inputs])}
    for name, layer in layers.items():
        quantizer = layer.weight_quantizer
        codes = quantizer.integers(layer.layer.weight.contiguous()) - quantizer.quant_min
        stored[_key(name, "weight")] = torch.from_numpy(pack(codes.cpu().numpy(), quantizer.bits))
        stored[_key(name, "scale")] = quantizer.scale.reshape(-1)
        if not quantizer.symmetric:
            stored[_key(name, "zero_point")] = quantizer.zero_point.reshape(-1)
    stored |= {key: values[key] for key in _rest(student)}
    stored = {key: value.detach().cpu().contiguous() for key, value in stored.items()}
    path = Path(path)
    write_weights(path, stored, {"format": FORMAT, "checksum": _checksum(stored), "facts": json.dumps(facts)})
    return path.stat().st_size


def load_packed(path: Path, network: nn.Module | None = None) -> tuple[nn.Module, dict]:
    """The quantized model of a file that `save_packed` wrote, in eval mode, and its facts.

    network: a network of the same architecture, where the file holds one that is not the lab's own; it is left
    untouched. The file holds numbers and no code. Raises ValueError when it is missing, damaged or foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no packed model at {path}: write one with `python -m zsq_lab export --out {path}`")
    try:
        stored, text = read_weights(path)
        if text.get("format") != FORMAT:
            raise ValueError(f"its format is '{text.get('format')}', expected '{FORMAT}'")
        if text.get("checksum") != _checksum(stored):
            raise ValueError("its checksum is wrong, some bytes have changed")
        facts = json.loads(text["facts"])
        return _fill(empty_student(facts, stored, network), stored), facts
    except ForeignNetwork as error:
        raise ValueError(f"{path} {error}") from None
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a packed model of this lab: {str(error).splitlines()[0]}. "
                         "Write it again with `python -m zsq_lab export`.") from error


def _fill(student: nn.Module, stored: dict[str, Tensor]) -> nn.Module:
    """Put the stored numbers into a fresh student; what only BatchNorm's memory was for becomes a plain identity."""
    for module in [m for m in student.modules() if isinstance(m, FoldedBatchNorm)]:
        identity = nn.Identity()
        identity.num_features = module.num_features
        replace_module(student, module, identity)
    known = {*INPUTS, *_rest(student), *(_key(name, part) for name in quant_layers(student)
                                         for part in ("weight", "scale", "zero_point"))}
    if foreign := stored.keys() - known:
        raise ValueError(f"it holds '{min(foreign)}', which the network does not have")
    values = {key: stored[key] for key in _rest(student)}
    sites = iter(zip(stored[INPUTS[0]], stored[INPUTS[1]], strict=True))
    for name, layer in quant_layers(student).items():
        values |= _weight(name, layer, stored)
        for index in range(len(layer.input_quantizers)):
            scale, zero_point = next(sites)
            prefix = _key(name, f"input_quantizers.{index}")
            values |= {f"{prefix}.scale": scale, f"{prefix}.zero_point": zero_point}
    student.load_state_dict(values, strict=False)  # a module with two names is filled by its first
    return student.eval()


def _weight(name: str, layer: QuantLayer, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight of a layer with its scale and zero point, in the shapes that the layer's state has."""
    quantizer, weight = layer.weight_quantizer, layer.layer.weight
    shape = [1] * weight.ndim
    shape[quantizer.axis] = -1
    scale = stored[_key(name, "scale")].reshape(shape)
    zero_point = torch.zeros_like(scale) if quantizer.symmetric else stored[_key(name, "zero_point")].reshape(shape)
    codes = unpack(stored[_key(name, "weight")].numpy(), quantizer.bits, weight.numel())
    integers = torch.from_numpy(codes.astype(np.float32)).reshape(weight.shape) + quantizer.quant_min
    return {_key(name, "layer.weight"): dequantize(integers, scale, zero_point),
            _key(name, "weight_quantizer.scale"): scale, _key(name, "weight_quantizer.zero_point"): zero_point}


def _rest(student: nn.Module) -> list[str]:
    """State that is neither a quantized weight, nor a quantizer's, nor the memory of a folded BatchNorm: biases mostly.

    What has two names, because its module has, is here by the first of them.
    """
    seen = {id(layer.layer.weight) for layer in quant_layers(student).values()}
    for module in student.modules():
        if isinstance(module, Quantizer | FoldedBatchNorm):
            seen |= {id(value) for value in (*module.parameters(), *module.buffers())}
    names = {}
    for key, value in student.state_dict(keep_vars=True).items():
        names.setdefault(id(value), key)
    return [key for value, key in names.items() if value not in seen]


def _key(name: str, part: str) -> str:
    """The name of a part of a layer; a layer that is the whole model has none itself."""
    return f"{name}.{part}" if name else part


def _checksum(stored: dict[str, Tensor]) -> str:
    checksum = 0
    for key in sorted(stored):
        checksum = zlib.crc32(stored[key].numpy().tobytes(), zlib.crc32(key.encode(), checksum))
    return f"{checksum:08x}"
