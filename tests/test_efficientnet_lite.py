"""EfficientNet-Lite: the same function as an independent implementation with the same weights,
and files that do not fit."""
import pytest
import torch
from networks import images

from zsq_lab.efficientnet_lite import SIZES, build, load_weights, rename, scaled_channels
from zsq_lab.graph import trace
from zsq_lab.torchvision_compat import import_torchvision

PACKAGED_KEYS = {"_conv_stem.weight": "stem.conv.weight", "_bn0.running_var": "stem.norm.running_var",
                 "_blocks.0._depthwise_conv.weight": "blocks.0.depthwise.conv.weight",
                 "_blocks.3._bn1.bias": "blocks.3.depthwise.norm.bias", "_bn1.weight": "head.norm.weight",
                 "_blocks.10._bn2.weight": "blocks.10.project.norm.weight", "_fc.bias": "classifier.bias"}


@pytest.mark.parametrize("name", SIZES)
def test_it_computes_what_timm_computes(name):
    """timm's network, an implementation of its own (padding at run time, BatchNorm and activation in one),
    same weights."""
    import_torchvision()  # timm asks for it
    timm = pytest.importorskip("timm")
    own, side = build(name).eval(), SIZES[name][2]
    other = timm.create_model(f"tf_{name}", pretrained=False).eval()
    theirs = other.state_dict()
    mine = [v for k, v in own.state_dict().items()]
    assert [v.shape for v in theirs.values()] == [v.shape
                                                  for v in mine]  # both list their weights in the order of the data
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(v.shape, generator=generator) * (2 / max(1, v[0].numel() if v.ndim > 1 else 1)) ** 0.5 + 0.1 *
             (v.ndim == 1) if v.is_floating_point() else v for v in mine]
    own.load_state_dict(dict(zip(own.state_dict(), drawn, strict=True)))
    other.load_state_dict(dict(zip(theirs, drawn, strict=True)))
    x = images(1, (3, side, side))
    with torch.inference_mode():
        wanted = other(x)
        assert wanted.std() > 1e-6
        torch.testing.assert_close(own(x), wanted, rtol=1e-3, atol=1e-4)


def test_sizes_of_the_paper():
    parameters = {name: sum(p.numel() for p in build(name).parameters()) for name in SIZES}
    assert {name: round(n / 1e6, 1) for name, n in parameters.items()} == {
        "efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1}
    assert [scaled_channels(c, 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]


def test_every_activation_is_a_module_of_its_own():
    """So that recipes can follow the data from layer to layer; a shared one would be two places with one name."""
    graph = trace(build("efficientnet_lite0"), (3, 224, 224))
    activations = [node.module for node in graph.nodes if isinstance(node.module, torch.nn.ReLU6)]
    assert len(activations) == len(set(activations)) == 33


def test_keys_of_the_packages():
    assert rename({key: torch.zeros(1) for key in PACKAGED_KEYS}).keys() == set(PACKAGED_KEYS.values())
    with pytest.raises(ValueError, match="unknown weight 'conv1.weight'"):
        rename({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("content", ["nothing", "another network", "code"])
def test_a_file_that_does_not_fit_is_one_clear_error(tmp_path, content):
    file = tmp_path / "weights.pth"
    if content == "another network":
        torch.save({"_fc.bias": torch.zeros(1000)}, file)
    elif content == "code":
        torch.save({"_fc.bias": Runs()}, file)
    else:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="weights.pth does not hold the weights of efficientnet_lite0.*Install"):
        load_weights("efficientnet_lite0", file)


class Runs:
    """What a malicious file would hold: an object whose loading calls a function."""

    def __reduce__(self):
        return pytest.fail, ("the file ran code",)
