"""Files of weights: tensors, and text that belongs to them, in one safetensors file that is written whole or not at all.

Such a file holds numbers and no code, so that a foreign one may be opened.
"""
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .whole_file import whole


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by their names, and its text. Raises ValueError for a file of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def write_weights(path: Path, tensors: dict[str, Tensor], text: dict[str, str]) -> None:
    """Write atomically, folders included: a reader sees the old file or the new one. Raises OSError where that fails."""
    # Copies, as safetensors refuses tensors that share memory: those of a module with two names.
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        with whole(path) as partial:
            partial.write_bytes(save(tensors, text))  # not save_file: its files can be read by their owner alone
    except OSError as error:  # of a full disk, for instance: it names no file
        raise OSError(f"{path} could not be written: {error}") from error
