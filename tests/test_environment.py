"""The commands and the three lists of packages: they agree with each other and do what the README says."""
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("env", "run", "lab", "data", "test", "clean")
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base",
               "nbconvert": "nbconvert-core"}  # the -base and -core packages leave out GUI toolkits and LaTeX

# Stands for python3: notes how it was called, makes a virtual environment that holds only itself, fails on demand.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *"$FAIL_AT"*) [ -n "$FAIL_AT" ] && exit 1 ;;
esac
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"--dry-run"*) echo "$WOULD_INSTALL" ;;
  "-c import json"*) exec "$REAL_PYTHON" "$@" ;;
esac
exit 0
"""
CUDA_BUILD = '{"install": [{"metadata": {"version": "2.13.0"}}]}'
CPU_BUILD = '{"install": [{"metadata": {"version": "2.13.0+cpu"}}]}'


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_every_package_is_pinned_once_inside_its_range():
    pinned = pins()
    for name, requirement in {**requirements(), **requirements("test")}.items():
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), name
        assert requirement.specifier.filter(["0.0.1"]) is not None and str(requirement.specifier), f"{name}: no range"


def test_conda_has_the_same_packages_with_the_same_ranges():
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert environment["dependencies"][-1] == {"pip": ["-e .[imagenet]"]}
    conda = {r.name: r.specifier for r in map(Requirement, environment["dependencies"][:-1])}
    for name, requirement in {**requirements(), **requirements("test")}.items():
        if name in requirements("imagenet"):  # not on conda-forge: the line of pip
            continue
        assert conda[CONDA_NAMES.get(name, name)] == requirement.specifier, name


def test_extras_and_licence():
    for extra in ("test", "imagenet", "export", "cluster"):
        assert requirements(extra)
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 ")


def test_readme_names_every_command():
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"`make {command}`" in readme, command
    for line in re.findall(r"^python -m zsq_lab\.(\w+)", readme, re.MULTILINE):
        assert (ROOT / "zsq_lab" / f"{line}.py").exists()


@pytest.mark.skipif(os.name == "nt", reason="shell script")
def test_ci_script_is_a_program_without_a_syntax_error():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.fixture
def clone(tmp_path):
    """A function that runs make in a copy of the project's environment files, with a stand-in for Python and pip."""
    if not shutil.which("make") or os.name == "nt":
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake, log, programs = tmp_path / "python3", tmp_path / "log", tmp_path / "programs"
    programs.mkdir()
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)

    def make(*arguments, fail_at="", would_install=CPU_BUILD, nvidia=False, system="Linux"):
        log.write_text("")
        for name, text in {"nvidia-smi": f"exit {0 if nvidia else 1}", "uname": f"echo {system}"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH_"))}
        env = {**kept, "LOG": str(log), "FAIL_AT": fail_at, "WOULD_INSTALL": would_install,
               "REAL_PYTHON": sys.executable, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["make", *arguments, f"PYTHON={fake}"], cwd=tmp_path, env=env, capture_output=True,
                              text=True, check=False)
        installs = [line for line in log.read_text().splitlines() if " install " in line and "--dry-run" not in line]
        return done, installs
    return make


def test_first_call_installs_in_order_and_the_second_nothing(clone, tmp_path):
    done, installs = clone("env")
    assert done.returncode == 0, done.stderr
    assert [line.split("install ")[1] for line in installs] == [
        "-q pip>=23.1", "-c constraints.txt torch torchvision", "-c constraints.txt -e .[test]"]
    for command in ("env", "run", "test"):
        done, installs = clone(command)
        assert done.returncode == 0 and installs == []
    changed = tmp_path / "constraints.txt"
    os.utime(changed, (changed.stat().st_atime, (tmp_path / ".venv" / ".installed").stat().st_mtime + 10))
    assert len(clone("env")[1]) == 3


@pytest.mark.parametrize("command", ["run", "lab", "data", "test"])
def test_every_command_works_first(clone, command):
    done, installs = clone(command)
    assert done.returncode == 0 and len(installs) == 3


@pytest.mark.parametrize("fail_at, step", [
    ("version_info", "step 1 (Python)"), ("-m venv", "step 1 (virtual environment)"),
    ("torch torchvision", "step 2 (PyTorch)"), (".[test]", "step 3 (the lab)")])
def test_a_failed_install_names_its_step_and_is_taken_up_again(clone, fail_at, step):
    done, _ = clone("run", fail_at=fail_at)
    assert done.returncode != 0 and f"FAILED at {step}. " in done.stderr
    done, installs = clone("run")
    assert done.returncode == 0 and len(installs) == 3


def index(installs: list[str]) -> str | None:
    found = re.search(r"--index-url (\S+)", installs[1])
    return found and found[1]


def test_cpu_wheels_only_where_pip_would_take_the_cuda_build(clone, tmp_path):
    def fresh(*arguments, **options):
        shutil.rmtree(tmp_path / ".venv", ignore_errors=True)
        done, installs = clone("env", *arguments, **options)
        assert done.returncode == 0, done.stderr
        return index(installs)
    assert fresh(would_install=CUDA_BUILD) == "https://download.pytorch.org/whl/cpu"
    assert fresh(would_install=CUDA_BUILD, nvidia=True) is None
    assert fresh(would_install=CUDA_BUILD, system="Darwin") is None
    assert fresh(would_install=CPU_BUILD) is None
    assert fresh(would_install='{"install": []}') is None  # it is installed already
    assert fresh(would_install="pip is too old") is None
    assert fresh("TORCH_INDEX=", would_install=CUDA_BUILD) is None
    assert fresh("TORCH_INDEX=https://example.org/whl", nvidia=True) == "https://example.org/whl"


def test_clean_keeps_the_environment_and_the_data(clone, tmp_path):
    clone("env")
    for path in ("build/html/x", "zsq_lab/__pycache__/x", ".venv/lib/__pycache__/x", "data/cache/x"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert clone("clean")[0].returncode == 0
    left = {path for path in ("build", "zsq_lab/__pycache__", ".venv/lib/__pycache__/x", "data/cache/x")
            if (tmp_path / path).exists()}
    assert left == {".venv/lib/__pycache__/x", "data/cache/x"}


def test_pins_run_on_the_oldest_python_or_are_marked():
    assert Version("3.10") in requires_python()
    for name, pin in pins().items():
        if name.startswith(("numpy", "pandas", "matplotlib", "hypothesis")):  # dropped 3.10
            assert pin.marker and not pin.marker.evaluate({"python_version": "3.10"}), name


def requires_python():
    tomllib = pytest.importorskip("tomllib")
    from packaging.specifiers import SpecifierSet
    return SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
