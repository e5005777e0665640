"""Other people's toolkits, calibrated with the lab's images: ONNX Runtime, PyTorch's PT2E in torchao, OpenVINO's NNCF.

Each of these wants a few hundred images of the training data to set its ranges, and does not care where they come from.
Every function takes a full-precision network and calibration images [N, ...] in the network's own scale, and returns
something that maps such images to logits; what was quantized, and how, is the toolkit's own default for CPUs.
Notebook 09 compares noise, synthetic and real images.
"""
import copy
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .arguments import Parser, positive, writable
from .arguments import seed as seed_number
from .cifar10 import DataError
from .export import float_program, require_onnx, save_onnx
from .onnx_runtime import require_runtime, session_of
from .onnx_runtime import run as run_session

INSTALL = "install the extra: pip install -c constraints.txt -e .[toolkits]"
BATCH = 32
Logits = Callable[[Tensor], Tensor]  # [N, ...] -> [N, classes]


@contextmanager
def _quiet() -> Iterator[None]:
    """The toolkits announce their own future, and what they recommend, on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def onnx_runtime_static(model: nn.Module, images: Tensor, *, out: Path | None = None,
                        threads: int | None = None) -> Logits:
    """ONNX Runtime's `quantize_static`: QDQ, weights int8 per channel, activations uint8, ranges by minimum and maximum.

    out: where to keep the file. Raises ImportError, with the command, where onnxruntime is missing.
    """
    _onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(images.split(BATCH))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"images": np.ascontiguousarray(batch.cpu().numpy())}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, quantized = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        save_onnx(float_program(model, tuple(images.shape[1:])), plain)
        quantize_static(str(plain), str(quantized), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        content = quantized.read_bytes()
    if out is not None:
        Path(out).write_bytes(content)
    session = session_of(content, threads=threads)
    return lambda x: torch.from_numpy(run_session(session, x))


def pt2e(model: nn.Module, images: Tensor) -> Logits:
    """PyTorch 2 export quantization (torchao) with the quantizer for x86 CPUs; runs in PyTorch, as its simulation does.

    Raises ImportError, with the command, where torchao is missing.
    """
    prepare_pt2e, convert_pt2e, x86 = _torchao()
    with _quiet(), torch.no_grad():
        example = (images[[0, -1]].contiguous(),)  # two even of one image: a batch of 1 would be taken for a constant
        batch = torch.export.Dim("batch", min=1, max=4096)
        exported = torch.export.export(copy.deepcopy(model).eval(), example, dynamic_shapes=({0: batch},)).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for part in images.split(BATCH):
            prepared(part.contiguous())
        converted = convert_pt2e(prepared)

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        return converted(x.contiguous())
    return logits


def nncf(model: nn.Module, images: Tensor) -> Logits:
    """OpenVINO's NNCF: post-training quantization of the ONNX file with its default preset, run in OpenVINO on the CPU.

    Raises ImportError, with the command, where nncf or openvino is missing.
    """
    toolkit, openvino = _nncf()
    shape = tuple(images.shape[1:])
    with tempfile.TemporaryDirectory() as folder, _quiet():
        save_onnx(float_program(model, shape), Path(folder) / "float.onnx")
        converted = openvino.convert_model(Path(folder) / "float.onnx")
        data = toolkit.Dataset([part.cpu().numpy() for part in images.split(1)])
        quantized = toolkit.quantize(converted, data, subset_size=len(images))
        compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda x: torch.from_numpy(compiled(np.ascontiguousarray(x.cpu().numpy()))[0].copy())


def _onnxruntime() -> None:
    require_onnx(), require_runtime()


def _torchao() -> tuple:
    try:
        with _quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except ImportError as error:
        raise ImportError(f"PT2E needs torchao: {INSTALL}") from error
    return prepare_pt2e, convert_pt2e, x86_inductor_quantizer


def _nncf() -> tuple:
    require_onnx()
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ImportError(f"NNCF needs openvino and nncf: {INSTALL}") from error
    return nncf, openvino


BRIDGES: dict[str, Callable[..., Logits]] = {"onnxruntime": onnx_runtime_static, "pt2e": pt2e, "nncf": nncf}
PACKAGES: dict[str, Callable] = {"onnxruntime": _onnxruntime, "pt2e": _torchao, "nncf": _nncf}  # what imports them


def compare(name: str, n: int = 128, *, seed: int = 0, limit: int | None = None, toolkits=tuple(BRIDGES),
            synthetic: Tensor | None = None) -> list[dict]:
    """Accuracy of each toolkit calibrated with n images of noise, made by the lab, and real: one row each, on test images.

    name: a network with its data set, `cifar10/resnet20`. synthetic: images to use instead of new quick ones.
    Raises ImportError, before images are made, where a toolkit is missing.
    """
    from .calibration_set import calibration_images
    from .checkpoints import load_model
    from .data import find_dataset
    from .evaluate import BATCH as TEST_BATCH
    from .evaluate import accuracy
    from .lab import real_images
    dataset, model = find_dataset(name.split("/")[0]), load_model(name)[0]
    shape = dataset.image_shape
    for toolkit in toolkits:
        PACKAGES[toolkit]()
    synthetic = calibration_images(model, shape, seed, progress=True) if synthetic is None else synthetic
    sets = {"noise": torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)), "synthetic": synthetic[:n],
            "real": real_images(dataset.train(), dataset, n, seed)}
    test, rows = dataset.test(), []
    labels, full = test.labels[:limit], accuracy(model, test, dataset, limit=limit)
    with tqdm(total=len(toolkits) * len(sets), desc="toolkits", leave=False) as bar:
        for toolkit, (kind, images) in itertools.product(toolkits, sets.items()):
            logits = BRIDGES[toolkit](model, images.contiguous())
            predicted = torch.cat([logits(dataset.normalise(part)).argmax(1) for part in test.images[:limit].split(TEST_BATCH)])
            rows.append({"model": name, "toolkit": toolkit, "calibration": kind, "images": len(images), "seed": seed,
                         "fp_accuracy": round(full, 2),
                         "accuracy": round(100 * (predicted == labels).double().mean().item(), 2),
                         "n_test": len(labels)})
            bar.update()
    return rows


def main(argv: list[str] | None = None) -> None:
    """`python -m zsq_lab.bridges --model cifar10/resnet20 --csv table.csv`: `compare` as a table."""
    import pandas as pd
    parser = Parser(prog="python -m zsq_lab.bridges",
                    description="Calibrate other toolkits with three kinds of images and compare.")
    parser.add_argument("--model", default="cifar10/resnet20")
    parser.add_argument("-n", type=positive, default=128, help="calibration images")
    parser.add_argument("--toolkits", nargs="+", choices=list(BRIDGES), default=list(BRIDGES))
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--n-test", type=positive, help="measure on the first N test images; default all")
    parser.add_argument("--csv", type=Path, help="the table to write")
    args = parser.parse_args(argv)
    try:
        writable(args.csv, "--csv")
        table = pd.DataFrame(compare(args.model, args.n, seed=args.seed, limit=args.n_test, toolkits=args.toolkits))
    except (DataError, ImportError, OSError, RuntimeError) as error:
        parser.fail(error)
    except ValueError as error:  # a wrong argument, or one that argparse could not check
        parser.error(str(error))
    if args.csv:
        table.to_csv(args.csv, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
