"""Pictures of scenes: what is laid over what, and what is drawn."""
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from zsq_lab.scene_plots import colours, over, scene_grid
from zsq_lab.scenes import UNLABELLED, Boxes

CLASSES = ("sky", "road", "building")


def test_unlabelled_pixels_stay_as_they_are():
    picture, mask = np.full((1, 3, 3), 0.2), np.array([[0, 2, UNLABELLED]])
    palette = colours(3)
    shown = over(picture, mask, palette, share=0.5)
    np.testing.assert_allclose(shown[0, :2], 0.1 + 0.5 * palette[[0, 2]])
    np.testing.assert_allclose(shown[0, 2], 0.2)
    assert len(np.unique(colours(30), axis=0)) == 30


def test_a_row_for_each_annotation_and_a_legend_of_what_is_there():
    masks = torch.tensor([[[0, 1], [UNLABELLED, 1]]] * 2)
    figure = scene_grid(torch.rand(2, 3, 2, 2), {"FP": list(masks), "W4A4": list(masks)}, CLASSES)
    assert len(figure.axes) == 6 and [axis.get_ylabel() for axis in figure.axes[::2]] == ["image", "FP", "W4A4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "road"]
    plt.close(figure)


def test_boxes_of_annotations_and_sure_ones_of_networks():
    truth = Boxes(torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([2]))
    found = {"boxes": torch.tensor([[1.0, 2, 5, 7], [0, 0, 1, 1]]), "labels": torch.tensor([2, 0]), "scores": torch.tensor([0.9, 0.3])}
    figure = scene_grid(torch.rand(1, 3, 8, 8), {"truth": [truth], "FP": [found]}, CLASSES)
    drawn = [[p.get_bbox().extents.tolist() for p in axis.patches if isinstance(p, Rectangle)] for axis in figure.axes]
    assert drawn == [[], [[1, 2, 5, 6]], [[1, 2, 5, 7]]]
    assert [text.get_text() for text in figure.axes[2].texts] == ["building"] and not figure.legends
    plt.close(figure)
