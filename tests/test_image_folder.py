"""Folders of images in every form that they come in, the pixels that torchvision would give, and every kind of bad input."""
import numpy as np
import pytest
import torch
from PIL import Image

from zsq_lab.cifar10 import DataError
from zsq_lab.image_folder import Preprocess, classes, find_images
from zsq_lab.torchvision_compat import import_torchvision

SMALL = Preprocess(40, 32)
WNIDS = ("n01440764", "n02102040", "n03000684")  # tench, English springer, chain saw: classes 0, 217, 491
NUMBERS = [0, 217, 491]


def draw(path, size=(60, 50), mode="RGB", seed=0):
    """A photograph-like file: smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def class_folders(root, each=2):
    for seed in range(each * len(WNIDS)):
        draw(root / WNIDS[seed // each] / f"{seed}.JPEG", seed=seed)
    return root


def test_the_thousand_classes():
    assert len(classes()) == 1000 and classes()[0] == ("n01440764", "tench")
    assert [wnid for wnid, _ in classes()] == sorted(wnid for wnid, _ in classes())
    assert [classes()[n][0] for n in NUMBERS] == list(WNIDS)


def test_class_folders_and_those_of_imagenette(tmp_path, monkeypatch):
    class_folders(tmp_path / "plain")
    class_folders(tmp_path / "imagenette" / "val")
    class_folders(tmp_path / "imagenette" / "train", each=1)
    for name in ("plain", "imagenette"):
        found = find_images(tmp_path / name)
        assert found.labels.tolist() == [0, 0, 217, 217, 491, 491]
        assert [path.parent.name for path in found.files] == [wnid for wnid in WNIDS for _ in range(2)]
    monkeypatch.setenv("ZSQ_IMAGENET", str(tmp_path / "plain"))
    assert len(find_images()) == 6
    monkeypatch.delenv("ZSQ_IMAGENET")
    assert find_images() is None


def test_what_macos_leaves_beside_images_is_none(tmp_path):
    class_folders(tmp_path / "classes")
    for place in (tmp_path / "classes" / WNIDS[0], tmp_path / "flat"):
        draw(place / "0.JPEG")
        (place / "._0.JPEG").write_bytes(b"Mac OS X")
    (tmp_path / "flat" / "val.txt").write_text("0.JPEG 217\n")
    assert find_images(tmp_path / "classes").labels.tolist() == [0, 0, 217, 217, 491, 491]
    assert find_images(tmp_path / "flat").labels.tolist() == [217]


@pytest.mark.parametrize("name, lines", [
    ("val.txt", ["{1}.JPEG 217", "{0}.JPEG 0", "{2}.JPEG 491"]),
    ("LOC_val_solution.csv", ["ImageId,PredictionString", "{2},n03000684 1 2 3 4 n03000684 5 6 7 8", "{0},n01440764 1 2 3 4",
                              "{1},n02102040 1 2 3 4"]),
    ("imagenet_2012_validation_synset_labels.txt", list(WNIDS))])
@pytest.mark.parametrize("beside", [False, True])
def test_the_flat_folder_with_its_label_file(tmp_path, name, lines, beside):
    names = [f"ILSVRC2012_val_{number:08}" for number in (1, 2, 3)]
    for seed, file in enumerate(names):
        draw(tmp_path / "val" / f"{file}.JPEG", seed=seed)
    (tmp_path if beside else tmp_path / "val").joinpath(name).write_text("\n".join(lines).format(*names) + "\n")
    assert find_images(tmp_path / "val").labels.tolist() == NUMBERS


def test_the_official_ground_truth_counts_as_meta_mat_does(tmp_path):
    draw(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    draw(tmp_path / "ILSVRC2012_val_00000002.JPEG")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n")
    with pytest.raises(DataError, match="put the kit's meta.mat beside it"):
        find_images(tmp_path)
    io = pytest.importorskip("scipy.io")
    rows = np.array([(490, "n03000684"), (361, "n01440764"), (1001, "n00000000")],
                    [("ILSVRC2012_ID", "i4"), ("WNID", "U9")])
    io.savemat(tmp_path / "meta.mat", {"synsets": rows})
    assert find_images(tmp_path).labels.tolist() == [491, 0]


@pytest.mark.parametrize("size, mode", [((60, 50), "RGB"), ((50, 60), "L"), ((64, 64), "CMYK"), ((40, 300), "RGB")])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_torchvisions_preset(tmp_path, size, mode, interpolation):
    """Grayscale and CMYK, which ImageNet has, become RGB."""
    transforms = import_torchvision().transforms
    path = draw(tmp_path / "image.jpg", size, mode)
    wanted = Image.open(path).convert("RGB")
    for step in (transforms.Resize(40, transforms.InterpolationMode(interpolation)), transforms.CenterCrop(32)):
        wanted = step(wanted)
    got = Preprocess(40, 32, interpolation=interpolation).pixels(path)
    assert got.shape == (32, 32, 3) and np.array_equal(got, np.asarray(wanted))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_whoever_decodes(tmp_path, workers):
    found = find_images(class_folders(tmp_path, each=7))
    batches = list(found.batches(SMALL, 5, workers))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 1]
    assert np.concatenate([labels for _, labels in batches]).tolist() == found.labels.tolist()
    pixels = np.concatenate([pixels for pixels, _ in batches])
    assert all(np.array_equal(own, SMALL.pixels(path)) for own, path in zip(pixels, found.files, strict=True))


def test_a_part_is_spread_over_the_classes(tmp_path):
    found = find_images(class_folders(tmp_path, each=4))
    assert found.first(3).labels.tolist() == [0, 217, 491]
    assert len(found.first(None)) == len(found.first(99)) == 12


def test_one_unreadable_image_in_a_hundred_is_named_and_skipped(tmp_path):
    found = find_images(class_folders(tmp_path, each=34))
    found.files[50].write_bytes(b"no image")
    labels = np.concatenate([labels for _, labels in found.batches(SMALL, 16, 0)])
    assert labels.tolist() == np.delete(found.labels, 50).tolist()
    (line,) = found.unreadable
    assert line.startswith(f"{found.files[50].parent.name}/{found.files[50].name}: ")


@pytest.mark.parametrize("damage", ["truncated", "tiny"])
def test_more_than_one_in_a_hundred_stops_the_run(tmp_path, damage):
    found = find_images(class_folders(tmp_path, each=34))
    for path in found.files[3:5]:
        if damage == "tiny":
            draw(path, (8, 8))
        else:
            path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="2 of the first 5 images .* cannot be read, more than 1% of all 102: "
                       "n01440764/11.JPEG"):
        list(found.batches(SMALL, 16, 0))


def test_folders_that_are_no_classes_are_named(tmp_path):
    class_folders(tmp_path)
    draw(tmp_path / "cats" / "1.jpg")
    with pytest.raises(DataError, match="1 of the 4 folders .* WordNet id .*: cats. Set ZSQ_IMAGENET"):
        find_images(tmp_path)


@pytest.mark.parametrize("name, text", [("val.txt", "b.jpg 3\n"), ("val.txt", "a.jpg 1000\n"),
                                        ("val.txt", "a.jpg cat\n"),
                                        ("imagenet_2012_validation_synset_labels.txt", "n01440764\nn01440764\n")])
def test_a_label_file_that_does_not_fit_is_named(tmp_path, name, text):
    draw(tmp_path / "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name} does not label the images .*expected lines such as"):
        find_images(tmp_path)


def test_a_mark_before_the_first_name_of_a_label_file_is_no_part_of_it(tmp_path):
    for seed, name in enumerate("ab"):
        draw(tmp_path / f"{name}.jpg", seed=seed)
    (tmp_path / "val.txt").write_text("a.jpg 3\nb.jpg 4\n", encoding="utf-8-sig")
    assert find_images(tmp_path).labels.tolist() == [3, 4]


def test_a_label_file_of_another_encoding_is_named(tmp_path):
    draw(tmp_path / "a.jpg")
    (tmp_path / "val.txt").write_text("a.jpg 3\n", encoding="utf-16")
    with pytest.raises(DataError, match="val.txt does not label the images .*UnicodeDecodeError"):
        find_images(tmp_path)


def test_missing_empty_and_unlabelled_folders(tmp_path):
    with pytest.raises(DataError, match="is no folder. Set ZSQ_IMAGENET"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no images"):
        find_images(tmp_path)
    draw(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="none of the label files val.txt"):
        find_images(tmp_path)


def test_normalised_pixels_are_those_of_torchvision(tmp_path):
    from zsq_lab.imagenet_evaluate import denormalise, normalise
    pixels = torch.from_numpy(SMALL.pixels(draw(tmp_path / "a.png")).copy())[None]
    transforms = import_torchvision().transforms
    wanted = transforms.Normalize(SMALL.mean, SMALL.std)(transforms.ToTensor()(pixels[0].numpy()))
    torch.testing.assert_close(normalise(pixels, SMALL)[0], wanted)
    torch.testing.assert_close(denormalise(normalise(pixels, SMALL), SMALL)[0], pixels[0].permute(2, 0, 1) / 255)
