"""`setup()` and what it hands a notebook: the profile asked for, the first test images, real images of training."""
import pytest
import torch
from networks import same_state, snapshot
from torch import nn

from zsq_lab.checkpoints import load_model
from zsq_lab.data import Dataset, Split, find_dataset
from zsq_lab.lab import NOTEBOOK_IMAGES, Lab, real_images, setup
from zsq_lab.models import MobileNetV2, ResNet20
from zsq_lab.shapes import draw_images


@pytest.fixture(scope="module")
def lab() -> Lab:
    return setup("embedded")


def tiny(seed: int = 0) -> Lab:
    """A lab on 60 + 40 images, no two alike."""
    def load(split: str) -> Split:
        return Split(*map(torch.from_numpy, draw_images(*{"train": (60, 10), "test": (40, 11)}[split])))

    dataset = Dataset("embedded", find_dataset("embedded").classes, (0.5,) * 3, (0.25,) * 3, load)
    return Lab("embedded", dataset, nn.Identity(), {}, seed, torch.device("cpu"))


def classifier() -> nn.Module:
    """One random linear layer: wrong often enough that every limit gives another accuracy."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(10, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)))
    return model


def test_setup_by_profile(lab):
    assert (lab.profile, lab.dataset.name, lab.image_shape, lab.seed) == ("embedded", "embedded", (3, 32, 32), 0)
    assert lab.dataset is find_dataset("embedded")
    assert isinstance(lab.model, ResNet20) and not lab.model.training
    assert next(lab.model.parameters()).device.type == lab.device.type
    expected, facts = load_model("embedded/resnet20")
    assert lab.facts == facts and facts["model"] == "embedded/resnet20"
    assert same_state({key: value.cpu() for key, value in lab.model.state_dict().items()}, expected.state_dict())


def test_the_environment_names_the_profile_where_the_call_does_not(monkeypatch):
    monkeypatch.setenv("ZSQ_PROFILE", "embedded")
    assert setup().profile == "embedded"
    monkeypatch.setenv("ZSQ_PROFILE", "mnist")
    with pytest.raises(ValueError, match="unknown profile 'mnist': expected one of cifar10, embedded"):
        setup()
    assert setup("embedded", seed=7).seed == 7, "what the call names comes first"


def test_nothing_named_is_the_first_profile_that_is_there(monkeypatch, capsys):
    monkeypatch.setenv("ZSQ_PROFILE", "")
    first = setup()
    assert first.profile == find_dataset().name == first.dataset.name
    assert capsys.readouterr().out == ""


def test_an_unknown_profile_or_model_is_one_clear_error():
    with pytest.raises(ValueError, match="unknown profile 'imagenet'"):
        setup("imagenet")
    with pytest.raises(ValueError, match="unknown model 'embedded/vgg': expected one of cifar10/resnet20"):
        setup("embedded", model="vgg")


def test_load_gives_another_network_each_time(lab):
    again, mobile = lab.load("resnet20"), lab.load("cifar10/mobilenetv2")
    assert isinstance(mobile, MobileNetV2) and not mobile.training
    assert again is not lab.model and same_state(again.state_dict(), lab.model.state_dict())
    before = snapshot(lab.model)
    with torch.no_grad():
        again.fc.weight.zero_()
    assert same_state(lab.model.state_dict(), before), "no tensor is shared"
    with pytest.raises(ValueError, match="unknown model 'embedded/mobilenetv2'"):
        lab.load("mobilenetv2")


def test_accuracy_is_that_of_the_first_images(lab):
    model, test = classifier().to(lab.device), lab.dataset.test()
    with torch.no_grad():
        right = model(lab.dataset.normalise(test.images).to(lab.device)).argmax(1).cpu() == test.labels
    for limit in (10, 300, None):
        assert lab.accuracy(model, limit) == pytest.approx(100 * right[:limit].double().mean().item())
    assert lab.accuracy(model) == pytest.approx(100 * right[:NOTEBOOK_IMAGES].double().mean().item())
    assert lab.accuracy(model) != lab.accuracy(model, None)


def test_the_shipped_network_is_right_where_it_should_be(lab):
    assert lab.accuracy(lab.model, 200) > 85  # its card says 91


def test_a_test_batch_is_the_first_test_images_as_the_model_takes_them(lab):
    images, labels = lab.test_batch(5)
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.float32 and images.device.type == lab.device.type
    assert labels.shape == (5,) and labels.dtype == torch.int64
    test = lab.dataset.test()
    assert torch.equal(labels, test.labels[:5])
    torch.testing.assert_close(lab.dataset.denormalise(images.cpu()) * 255, test.images[:5].float(), rtol=0, atol=1e-3)
    images, labels = tiny().test_batch()
    assert len(images) == len(labels) == 40, "256, or as many as there are"


def test_real_images_are_training_images_drawn_with_the_seed():
    own, again, other = (tiny(seed).real_images(20) for seed in (0, 0, 1))
    assert own.shape == (20, 3, 32, 32) and own.dtype == torch.float32
    assert torch.equal(own, again) and not torch.equal(own, other)
    dataset = tiny().dataset
    training, test = ({image.numpy().tobytes() for image in dataset.normalise(split.images)}
                      for split in (dataset.train(), dataset.test()))
    drawn = {image.numpy().tobytes() for image in own}
    assert len(drawn) == 20 and drawn <= training and not drawn & test
    assert torch.equal(own, real_images(dataset.train(), dataset, 20, seed=0))
    everything = {image.numpy().tobytes() for image in tiny().real_images(60)}
    assert everything == training, "each image once"


def test_drawing_real_images_leaves_torchs_random_numbers_alone():
    before = torch.get_rng_state()
    tiny().real_images(5)
    assert torch.equal(torch.get_rng_state(), before)
