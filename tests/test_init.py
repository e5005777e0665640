"""The package: public names that are imported when they are first used,
so that `doctor` runs where torch is missing."""
import subprocess
import sys

import pytest

import zsq_lab


def test_public_names_are_those_of_their_homes():
    from zsq_lab import layers, lab, recipes, sweeps
    assert zsq_lab.__all__ == ["QuantConfig", "quantize", "setup", "sweep", "synthesize"]
    assert zsq_lab.QuantConfig is layers.QuantConfig and zsq_lab.quantize is recipes.quantize
    assert zsq_lab.setup is lab.setup and zsq_lab.sweep is sweeps.sweep and zsq_lab.synthesize is recipes.synthesize


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zsq_lab' has no attribute 'quantise'"):
        zsq_lab.quantise  # noqa: B018


def test_importing_the_package_and_its_command_line_imports_no_torch():
    code = "import sys, zsq_lab, zsq_lab.__main__ as m; m.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
