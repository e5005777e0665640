"""The arguments that name a network and its data: what they find, and what is refused in one line."""
import pytest
from command_line import one_line
from scene_files import street  # noqa: F401 (a fixture)

from zsq_lab.__main__ import build_parser
from zsq_lab.named_model import named, named_classifier


def parsed(*arguments: str):
    return build_parser().parse_args(arguments)


def test_a_name_means_its_data_set_and_a_bare_one_the_profile():
    for arguments in (["--model", "embedded/resnet20"], ["--model", "resnet20", "--profile", "embedded"]):
        name, dataset, network = named(parsed("evaluate", *arguments))
        assert (name, dataset.name, network.training) == ("embedded/resnet20", "embedded", False)
        assert named_classifier(parsed("export", "--out", "x.onnx", *arguments))[0] == name


def test_the_data_may_be_another_than_the_networks():
    name, dataset, _ = named(parsed("evaluate", "--model", "cifar10/resnet20", "--profile", "embedded"))
    assert (name, dataset.name) == ("cifar10/resnet20", "embedded")


def test_training_needs_no_network_yet():
    assert named(parsed("train", "--model", "embedded/resnet20"))[2] is None


def test_a_folder_of_scenes_is_read(street):  # noqa: F811
    name, dataset, _ = named(parsed("evaluate", "--model", "camvid/segmenter", "--data", str(street)))
    assert name == "camvid/segmenter" and dataset.name == "camvid" and len(dataset.test()) == 2


@pytest.mark.parametrize("arguments, status, said", [
    (["--model", "", "--profile", "embedded"], 2, "unknown model"), (["--model", "/"], 2, "unknown profile ''"),
    (["--model", "embedded/"], 2, "unknown model"),
    (["--model", "a/b/c"], 2, "unknown profile 'a'"),
    (["--model", "resnet20", "--profile", "imagenet"], 2, "unknown profile"),
    (["--model", "embedded/resnet20", "--data", "x"], 2, "--data names a folder of scenes"),
    (["--model", "embedded/segmenter", "--data", "x"], 2, "profile embedded draws its own"),
    (["--model", "segmenter", "--profile", "embedded", "--data", "x"], 2, "profile embedded draws its own"),
    (["--model", "camvid/segmenter", "--profile", "embedded"], 2, "knows the classes of camvid, not those of profile embedded"),
    (["--model", "bccd/detector", "--profile", "embedded"], 2, "leave --profile out"),
    (["--model", "camvid/segmenter", "--data", "nowhere"], 1, "camvid is not in any of these folders: nowhere"),
    (["--model", "embedded/resnet20", "--seed", "99999999999"], 2, "is not a seed"),
    (["--model", "embedded/resnet20", "--seed", "1.5"], 2, "is not a seed")])
def test_what_cannot_be_found_is_one_line(capsys, arguments, status, said):
    assert (found := one_line(capsys, "evaluate", *arguments))[0] == status and said in found[1]
