"""A network as an ONNX file: quantized in QDQ form, or in full precision to compare with.

    program = export.deploy(result.model, (3, 32, 32), images)     # the simulation of what the file will compute
    export.save_onnx(program, "resnet20_int8.onnx")

Loading refuses what could do harm or mislead: operators that are not ONNX's own, data outside the file, changed bytes.
Notebook 09 goes from simulation to file.
"""
import hashlib
import json
from pathlib import Path

from torch import nn

from .deploy import deploy  # noqa: F401  (the first of the two steps of an export)
from .folding import fold
from .fused import split_fused_norms
from .layers import float_copy
from .onnx_graph import GraphWriter
from .program import Program
from .recorder import record
from .whole_file import whole

EXTRA = "install the extra: pip install -c constraints.txt -e .[export]"


def float_program(model: nn.Module, image_shape: tuple[int, ...]) -> Program:
    """The program of a full-precision model, its BatchNorms folded as runtimes do themselves; the model is left untouched."""
    shape = tuple(image_shape)
    return record(fold(split_fused_norms(float_copy(model)), shape), shape)


def save_onnx(program: Program, path: Path, facts: dict | None = None, *, int4: bool = True) -> dict:
    """Write a program as ONNX, atomically, after `onnx.checker` has passed it; returns what the file is.

    facts: travel in the file's metadata. int4: store weights of at most 4 bits as INT4, two to a byte (opset 21);
    without it as int8. Raises ValueError for operations that ONNX does not have, by their names.
    """
    onnx = require_onnx()
    model = GraphWriter(program, int4=int4).model({"facts": json.dumps(facts or {})})
    onnx.helper.set_model_props(model, {"facts": json.dumps(facts or {}), "checksum": _checksum(model)})
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    with whole(path) as partial:
        partial.write_bytes(model.SerializeToString())
    return describe(model) | {"bytes": path.stat().st_size}


def load_onnx(path: Path):
    """The ModelProto of a file that `save_onnx` wrote. Raises ValueError when it is missing, damaged, changed or foreign."""
    onnx = require_onnx()
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no model at {path}: write one with `python -m zsq_lab export --out {path}`")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        _only_numbers(model)
        onnx.checker.check_model(model, full_check=True)
        properties = {p.key: p.value for p in model.metadata_props}
        if properties.get("checksum") != _checksum(model):
            raise ValueError("its checksum is wrong, some bytes have changed")
    except Exception as error:  # protobuf, onnx and its shape inference each raise errors of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not an ONNX file of this lab: {reason}. Write it again with "
                         "`python -m zsq_lab export`.") from error
    return model


def describe(model) -> dict:
    """Versions and counts of a ModelProto: opset, ir_version, nodes, and how many of each operator."""
    kinds = [node.op_type for node in model.graph.node]
    return {"opset": model.opset_import[0].version, "ir_version": model.ir_version, "nodes": len(kinds),
            "operators": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def require_onnx():
    """The package onnx. Raises ImportError that says how to get it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"the export needs onnx and onnxruntime: {EXTRA}") from error
    return onnx


def _only_numbers(model) -> None:
    from onnx import TensorProto
    foreign = {d for d in (*(o.domain for o in model.opset_import), *(n.domain for n in model.graph.node))
               if d not in ("", "ai.onnx")}
    if foreign or model.functions:
        raise ValueError(f"it uses operators that are not ONNX's own ({', '.join(sorted(foreign)) or 'functions'})")
    if any(t.data_location == TensorProto.EXTERNAL or t.external_data for t in model.graph.initializer):
        raise ValueError("it wants to read other files")
    if not model.graph.node:
        raise ValueError("it holds no operation")


def _checksum(model) -> str:
    digest = hashlib.sha256()
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()[:32]
