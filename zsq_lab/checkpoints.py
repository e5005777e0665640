"""The full-precision networks that the lab ships: safetensors files with a card each, under `data/checkpoints/`.

A name is `data set/architecture`, `cifar10/resnet20` for instance; a bare architecture means the current profile's.
The facts that a card states (accuracy, epochs, seed, time, machine) travel in the file's metadata as well.
"""
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from . import imagenet_models
from .equalize import ClippedReLU
from .folding import replace_module
from .generators import Generator
from .layers import QuantConfig, convert, quant_layers
from .models import build, count_parameters
from .weight_file import read_weights, write_weights

FOLDER = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
MODELS = ("cifar10/resnet20", "cifar10/mobilenetv2", "embedded/resnet20", "camvid/segmenter", "camvid/lite_segmenter",
          "bccd/detector", "embedded/segmenter", "embedded/detector")


def full_name(name: str, profile: str) -> str:
    """`resnet20` -> `cifar10/resnet20` in profile cifar10; raises ValueError, listing the names, for an unknown one."""
    name = name if "/" in name else f"{profile}/{name}"
    if imagenet_models.is_imagenet(name):
        return imagenet_models.check_name(name)
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}': expected one of {', '.join(MODELS)}")
    return name


def checkpoint_path(name: str) -> Path:
    """Where the weights of a full model name lie."""
    return FOLDER / f"{name.replace('/', '_')}.safetensors"


def load_model(name: str, path: Path | None = None) -> tuple[nn.Module, dict]:
    """The network of a full name in eval mode, and its card's facts; path: another file of the same architecture.

    Raises ValueError when the file is missing, damaged, or belongs to another architecture.
    """
    if imagenet_models.is_imagenet(name):
        network, preprocess = imagenet_models.load_imagenet(name)
        return network, {"model": name, "classes": 1000, "preprocess": asdict(preprocess)}
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}': expected one of {', '.join(MODELS)}")
    path = path or checkpoint_path(name)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: train it with `python -m zsq_lab train --model {name}`")
    try:
        weights, text = read_weights(path)
        facts = json.loads(text.get("facts", "{}"))
        model = build(name.split("/")[1], facts.get("classes", 10))
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint of {name}: {reason}. Restore the file or train it "
                         "again.") from error
    return model.eval(), facts


def save_model(model: nn.Module, path: Path, facts: dict) -> None:
    """Write weights and facts, atomically: a reader sees the old file or the new one."""
    write_weights(path, model.state_dict(), {"facts": json.dumps(facts)})


def write_card(path: Path, facts: dict) -> None:
    """The card beside a checkpoint: how it was made and what it scores, as a Markdown table.

    Facts named `start_...` tell the same of the checkpoint that training started from: they get a table of their own.
    """
    start = {key.removeprefix("start_"): value for key, value in facts.items() if key.startswith("start_")}
    parts = [f"# {facts['model']}", f"Trained by `{facts['command'].split(' --')[0]}`; weights in `{path.name}`.",
             _table({key: value for key, value in facts.items() if not key.startswith("start_")})]
    if start:
        parts += ["Training went on from an earlier checkpoint:", _table(start)]
    card_path(path).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def card_path(path: Path) -> Path:
    """Where the card of a checkpoint lies; what ends in anything but .safetensors keeps that ending before the card's."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.md")


def _table(facts: dict) -> str:
    return "\n".join(["| fact | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


def describe(name: str) -> dict:
    """One row of `python -m zsq_lab models`: name, parameters, accuracy as the card states it, None without a file."""
    untrained = imagenet_models.build if imagenet_models.is_imagenet(name) else build
    row = {"model": name, "parameters": count_parameters(untrained(name.split("/")[1]))}
    if imagenet_models.is_imagenet(name):
        return row | {"accuracy": None, "weights": imagenet_models.where(name)}
    if not checkpoint_path(name).is_file():
        return row | {"accuracy": None}
    return row | {"accuracy": load_model(name)[1].get("accuracy")}


class ForeignNetwork(ValueError):
    """The file may well be sound, but its network is none of the lab's: who reads it has to bring one."""


def load_quantized(path: Path, network: nn.Module | None = None) -> tuple[nn.Module, dict]:
    """A quantized model written by `quantize --out`, in eval mode with its ranges frozen, and its facts.

    network: one of the same architecture, where the file's is not one of the lab's; it is left untouched.
    The file holds weights, scales and facts, no code. Raises ValueError when it is missing, damaged or foreign.
    """
    if not path.is_file():
        raise ValueError(f"no quantized model at {path}: write one with `python -m zsq_lab quantize --out {path}`")
    try:
        values, text = read_weights(path)
        facts = json.loads(text.get("facts", "{}"))
        student = empty_student(facts, values, network)
        student.load_state_dict(values)
    except ForeignNetwork as error:
        raise ValueError(f"{path} {error}") from None
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a quantized model of this lab: {str(error).splitlines()[0]}. "
                         "Write it again with `python -m zsq_lab quantize`.") from error
    return student.eval(), facts


def empty_student(facts: dict, values: dict, network: nn.Module | None = None) -> nn.Module:
    """A quantized model of the facts' architecture and configuration, to be filled with `values` (a state_dict).

    network: one of the same architecture, where it is not one of the lab's. Raises ValueError for facts that lack something,
    `ForeignNetwork` where there is no network to fill.
    """
    if missing := {"config", "image_shape"} - facts.keys():
        raise ValueError(f"its facts lack '{min(missing)}'")
    if network is None:
        name = str(facts.get("model"))
        imagenet = imagenet_models.is_imagenet(name)
        if not imagenet and name not in MODELS:
            raise ForeignNetwork(f"holds a network that is none of the lab's (model: {name}): pass one of the same "
                                 "architecture as network=")
        own = name.split("/")[1]
        network = imagenet_models.build(own) if imagenet else build(own, facts.get("classes", 10))
    _, student = convert(network, QuantConfig(**facts["config"]), tuple(facts["image_shape"]))
    for name, layer in quant_layers(student).items():
        bias = values.get(f"{name}.layer.bias")
        if layer.layer.bias is None and bias is not None:  # recipe dfq gives biases to layers that had none
            layer.layer.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
    for key in [key for key in values if key.endswith(".cap")]:  # recipe dfq rescales the caps of ReLU6
        activation = student.get_submodule(key.removesuffix(".cap"))
        if not isinstance(activation, ClippedReLU):
            replace_module(student, activation, ClippedReLU(values[key]))
    return student


def generator_path(name: str) -> Path:
    """Where the trained conditional generator of a full model name lies."""
    return FOLDER / f"{name.replace('/', '_')}_generator.safetensors"


def load_generator(name: str, path: Path | None = None) -> tuple[Generator, dict]:
    """The conditional generator that was trained against the network of a full name, and its card's facts.

    Raises ValueError when the file is missing, damaged or foreign.
    """
    path = path or generator_path(name)
    if not path.is_file():
        raise ValueError(f"no generator at {path}: train it with `python -m zsq_lab generator --model {name}`")
    try:
        weights, text = read_weights(path)
        facts = json.loads(text.get("facts", "{}"))
        generator = Generator(tuple(facts["image_shape"]), facts["classes"])
        generator.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a generator of this lab: {str(error).splitlines()[0]}. Restore the file or train "
                         "it again.") from error
    return generator.eval().requires_grad_(False), facts
