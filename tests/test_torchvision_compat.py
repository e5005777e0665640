"""torchvision imports beside any build of torch, and the non-maximum suppression it then uses is right."""
import importlib
import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zsq_lab import torchvision_compat as compat


def in_new_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@cache
def plain_import_fails() -> bool:
    return "operator torchvision::nms does not exist" in in_new_python("import torchvision").stderr


def slow_nms(boxes, scores, threshold):
    """Non-maximum suppression by its definition, in Python numbers, a pair of boxes at a time."""
    def iou(a, b):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / union if union else 0.0
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@given(seed=st.integers(0, 10_000), n=st.integers(0, 40), threshold=st.sampled_from([0.0, 0.13, 0.3, 0.5, 0.77, 1.0]),
       ties=st.booleans())
def test_nms_equals_the_definition(seed, n, threshold, ties):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.randint(0, 20, (2, n, 2), generator=generator)
    boxes = torch.cat([corner, corner + side], 1).double()  # whole numbers: the same IoU however it is computed
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    scores = (scores * 4).round() if ties else scores
    expected = slow_nms(boxes.tolist(), scores.tolist(), threshold)
    assert compat.plain_nms(boxes, scores, threshold).tolist() == expected
    assert compat.import_torchvision().ops.nms(boxes, scores, threshold).tolist() == expected


def test_nms_by_hand():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 10.0]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.4])
    # 1 is best; 0 and 3 overlap it by one half; 0 and 3 are equal
    assert compat.plain_nms(boxes, scores, 0.5).tolist() == [1, 0, 2]
    assert compat.plain_nms(boxes, scores, 0.49).tolist() == [1, 2]
    assert compat.plain_nms(boxes, scores, 1.0).tolist() == [1, 0, 3, 2]


def test_nms_says_what_it_takes():
    with pytest.raises(ValueError, match=r"boxes \[N, 4\]"):
        compat.plain_nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"scores \[N\]"):
        compat.plain_nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


def test_import_gives_a_torchvision_that_works():
    torchvision = compat.import_torchvision()
    assert compat.import_torchvision() is torchvision is sys.modules["torchvision"]
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    boxes, scores = torch.tensor([[0, 0, 4, 4.0]] * 3), torch.tensor([0.2, 0.3, 0.1])
    groups = torch.tensor([0, 0, 1])  # batched_nms, which the detection models call, keeps the best box of each group
    assert torchvision.ops.batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2]
    assert torch.ops.torchvision.nms(boxes, scores, 0.5).tolist() == [1]


def test_patched_only_where_the_plain_import_fails():
    compat.import_torchvision()
    assert compat.is_patched() is plain_import_fails()


@pytest.mark.slow
def test_survives_a_failed_import_before_it():
    if not plain_import_fails():
        pytest.skip("torch and torchvision fit each other here")
    done = in_new_python("""
try:
    import torchvision
except RuntimeError as error:
    assert "nms does not exist" in str(error)
from zsq_lab.torchvision_compat import import_torchvision, is_patched
torchvision = import_torchvision()
import torchvision.transforms.v2, torchvision.ops
assert is_patched() and torchvision.ops.nms.__name__ == "plain_nms"
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'torchvision'"), RuntimeError("out of memory"),
                                   RuntimeError("operator torchvision::other does not exist")])
def test_other_errors_are_not_hidden(monkeypatch, error):
    def fail(name):
        raise error
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(type(error), match=str(error).replace("'", ".")):
        compat.import_torchvision()
