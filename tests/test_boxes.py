"""Boxes: overlaps by hand, the decoder against brute force, what each location learns."""
import pytest
import torch

from zsq_lab.boxes import assign, decode, generalised_iou, iou, locations, suppress, to_boxes


def boxes(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_overlaps_worked_by_hand():
    a, b = boxes([0, 0, 2, 2]), boxes([1, 1, 3, 3])
    assert iou(a, b).item() == pytest.approx(1 / 7)
    assert generalised_iou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)  # the hull is 3x3, 2 of it in neither
    assert iou(a, a) == generalised_iou(a, a) == 1
    apart = boxes([5, 0, 6, 1])
    assert iou(a, apart) == 0 and generalised_iou(a, apart).item() == pytest.approx(-(12 - 5) / 12)
    empty = boxes([1, 1, 1, 1])
    assert iou(empty, empty) == 0 and generalised_iou(empty, empty).isfinite()


def test_locations_are_the_centres_of_cells_row_by_row():
    assert locations(2, 3, 4).tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]]


def test_a_box_is_its_distances_from_a_location():
    logs = torch.tensor([[0.5, 1.0, 2.0, 0.25]]).log()
    assert to_boxes(logs, torch.tensor([[10.0, 20.0]]), 4).tolist() == [[8, 16, 18, 21]]
    assert to_boxes(torch.full((1, 4), 1e4), torch.zeros(1, 2), 4).isfinite().all()


def test_a_location_learns_the_smallest_box_around_it():
    centres = locations(8, 8, 4)
    large, small = [0, 0, 32, 32], [10, 10, 22, 22]
    wanted, labels = assign(boxes(large, small), torch.tensor([3, 5]), centres, 4)
    middle = 4 * 8 + 4  # at (18, 18), near the centre of both
    assert labels[middle] == 5 and wanted[middle].tolist() == small
    assert labels[0] == -1, "the corner is inside the large box, and too far from its centre"
    assert set(labels.tolist()) == {-1, 5}
    away = assign(boxes(large, [1, 1, 5, 5]), torch.tensor([3, 5]), centres, 4)[1]
    assert {3, 5} <= set(away.tolist())


def test_a_tiny_box_is_learned_by_the_nearest_location():
    labels = assign(boxes([12.9, 12.9, 13.1, 13.1]), torch.tensor([2]), locations(8, 8, 4), 4)[1]
    assert labels.view(8, 8)[3, 3] == 2 and (labels >= 0).sum() == 1


def test_no_box_no_label():
    wanted, labels = assign(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), locations(2, 2, 4), 4)
    assert wanted.shape == (4, 4) and labels.tolist() == [-1] * 4


def brute_force(classes, logs, stride, threshold, overlap):
    """One image, one number at a time: every (location, class), the surest first, against all that were kept."""
    found = []
    for k in range(classes.shape[0]):
        for row in range(classes.shape[1]):
            for column in range(classes.shape[2]):
                score = 1 / (1 + (-classes[k, row, column].double()).exp().item())
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                left, up, right, down = (logs[:, row, column].double().exp() * stride).tolist()
                box = [max(x - left, 0), max(y - up, 0), min(x + right, classes.shape[2] * stride),
                       min(y + down, classes.shape[1] * stride)]
                if score > threshold:
                    found.append((score, k, box))
    kept = []
    for score, k, box in sorted(found, key=lambda f: -f[0]):
        def common(other, box=box):
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            both = max(width, 0) * max(height, 0)
            areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
            return both / (areas - both)
        if all(label != k or common(other) <= overlap for _, label, other in kept):
            kept.append((score, k, box))
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_the_decoder_agrees_with_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    classes, logs = torch.randn(2, 3, 5, 6, generator=generator), torch.randn(2, 4, 5, 6,
                                                                              generator=generator) * 0.4 + 0.8
    for image, found in enumerate(decode(classes, logs, 4, threshold=0.3, overlap=0.4)):
        expected = brute_force(classes[image], logs[image], 4, 0.3, 0.4)
        assert len(expected) > 5
        torch.testing.assert_close(found["scores"], torch.tensor([e[0] for e in expected]), rtol=1e-5, atol=1e-6)
        assert found["labels"].tolist() == [e[1] for e in expected]
        torch.testing.assert_close(found["boxes"], boxes(*(e[2] for e in expected)), rtol=1e-4, atol=1e-4)


def test_the_decoder_keeps_the_surest_and_no_more_than_asked():
    classes, logs = torch.arange(12.0).view(1, 1, 3, 4), torch.full((1, 4, 3, 4), -1.0)
    (found,) = decode(classes, logs, 4, most=5)
    assert len(found["boxes"]) == 5 and found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    (nothing,) = decode(classes - 100, logs, 4)
    assert nothing["boxes"].shape == (0, 4) and nothing["labels"].dtype == torch.int64


def test_what_is_suppressed_takes_nobodys_place():
    """Three boxes on one thing and a less sure one elsewhere: asked for two, the decoder gives both things."""
    own = boxes([0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 30, 30])
    found = suppress(own, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), 0.05, 0.5, 2)
    assert found["boxes"].tolist() == [[0, 0, 9, 9], [20, 20, 30, 30]]
