"""The loop over epochs: the schedule, the order of examples, what stops it, and what a state and a card are named by."""
import pytest
import torch
from networks import same_state
from torch import nn

from zsq_lab.epochs import conditions, decayed, learning_rate, run_epochs, state_path


def test_learning_rate_is_one_cycle():
    rates = [learning_rate(step, 100, 0.5) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and max(rates) == rates[20] == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.25) and rates[100] == 0
    assert all(a < b for a, b in zip(rates[:20], rates[1:21])) and all(a > b for a, b in zip(rates[20:], rates[21:]))


def run(loss_of, n: int = 6, model: nn.Module | None = None, **more) -> dict:
    """Three batches of two examples, two epochs."""
    model = model or nn.Linear(1, 1)
    return run_epochs(model, torch.optim.SGD(model.parameters(), lr=0.0), loss_of, n,
                      **{"epochs": 2, "batch_size": 2, "peak": 0.1, "progress": False, **more})


def test_each_epoch_sees_every_example_once_in_an_order_of_its_own():
    def order(seed: int) -> list[list[int]]:
        seen, model = [[], []], nn.Linear(1, 1)

        def loss_of(epoch, chosen, generator):
            seen[epoch] += chosen.tolist()
            return model(torch.ones(1)).sum()
        run(loss_of, n=7, model=model, seed=seed)
        return seen
    first, second = order(0)
    assert len(first) == len(set(first)) == 6 and set(first) <= set(range(7)), "the seventh fills no batch"
    assert first != second and order(0) == [first, second] and order(1) != [first, second]


def test_the_loss_is_the_mean_of_the_last_epoch_and_the_rate_is_the_schedules():
    model, optimizers = nn.Linear(1, 1, bias=False), []
    optimizer = torch.optim.SGD(model.parameters(), lr=9.0)
    optimizer.step = lambda: optimizers.append(optimizer.param_groups[0]["lr"])
    losses = iter([9.0, 9.0, 9.0, 1.0, 2.0, 6.0])
    facts = run_epochs(model, optimizer, lambda *_: 0 * model.weight.sum() + next(losses), 6, epochs=2, batch_size=2,
                       peak=0.5, progress=False)
    assert facts["loss"] == pytest.approx(3) and facts["epochs"] == 2 and facts["seconds"] > 0 and not model.training
    assert optimizers == [learning_rate(i, 6, 0.5) for i in range(6)]


@pytest.mark.parametrize("largest, moved", [(None, 30.0), (1.5, 1.5)])
def test_the_norm_of_all_gradients_is_cut_off(largest, moved):
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    run(lambda *_: 30 * model.weight.sum(), n=2, model=model, epochs=1, peak=10.0, largest_gradient=largest)
    assert abs(model.weight.item() - before) == pytest.approx(learning_rate(0, 1, 10.0) * moved, rel=1e-4)


def test_weights_decay_and_the_rest_does_not():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    groups = decayed(model, 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [p.ndim for p in groups[0]["params"]] == [4] and len(groups[1]["params"]) == 3


def test_divergence_and_too_few_examples_are_named():
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match=r"training diverged in epoch 1: .*lower --lr \(0.1\)"):
        run(lambda *_: model.weight.sum() * torch.nan, model=model)
    with pytest.raises(ValueError, match="1 scenes do not fill one batch of 2: pass more scenes"):
        run(None, n=1, kind="scenes")


def test_an_interrupted_run_goes_on_from_its_last_whole_epoch(tmp_path, capsys):
    def linear():
        torch.manual_seed(0)
        return nn.Linear(1, 1)

    def go(model, stop_at=None, **more):
        done = []

        def loss_of(epoch, chosen, generator):
            done.append(epoch)
            if len(done) == stop_at:
                raise KeyboardInterrupt
            return (model(torch.rand(2, 1, generator=generator)) - chosen[:, None]).square().mean()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        facts = run_epochs(model, optimizer, loss_of, 6, epochs=4, batch_size=2, peak=0.01, **more)
        return done, facts
    whole, cut, file = linear(), linear(), tmp_path / "new" / "state.pt"
    go(whole, progress=False)
    with pytest.raises(KeyboardInterrupt):
        go(cut, stop_at=8, state_file=file, progress=False)  # in the third epoch
    done, facts = go(cut, state_file=file, note=lambda epoch: f" of {epoch}")
    assert done == [2] * 3 + [3] * 3 and same_state(whole.state_dict(), cut.state_dict())
    out, err = capsys.readouterr()
    assert out == "" and "epoch 4/4 of 3: loss" in err and "epoch 2/4" not in err
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]
    assert go(cut, state_file=file, progress=False)[1] == facts, "nothing left to do: what was known then"


def test_a_state_that_is_cut_off_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    model, file, save = nn.Linear(1, 1), tmp_path / "state.0.pt", torch.save
    run(lambda *_: model(torch.ones(1)).sum(), model=model, epochs=1, state_file=file)
    before = file.read_bytes()

    def cut_off(state, partial):
        save(state, partial)
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(lambda *_: model(torch.ones(1)).sum(), model=model, state_file=file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_state_belongs_to_its_settings_and_to_the_bytes_it_started_from(tmp_path):
    start, copy, other = (tmp_path / name for name in ("a", "b", "c"))
    for file, content in ((start, b"1"), (copy, b"1"), (other, b"2")):
        file.write_bytes(content)
    settings, images = ("embedded/resnet20", 3, 0.1, 0), torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
    names = [state_path(tmp_path, *settings, file, images).name for file in (None, start, copy, other)]
    assert names[1] == names[2] and len(set(names)) == 3 and names[0].startswith("train_embedded_resnet20_3_0.1_0_5_")
    for index, value in enumerate(("embedded/mobile", 4, 0.2, 1)):
        changed = [*settings[:index], value, *settings[index + 1:]]
        assert state_path(tmp_path, *changed, None, images).name != names[0]
    one_pixel = images.clone()
    one_pixel[4, 2, 1, 1] = 1
    assert len({state_path(tmp_path, *settings, None, x).name for x in (images, images.clone(), images[:4], one_pixel)}) == 3


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:len(whole) // 2], lambda whole: b"no state"])
def test_a_damaged_state_is_named_with_what_to_do(tmp_path, damage):
    model, file = nn.Linear(1, 1), tmp_path / "state.pt"
    run(lambda *_: model(torch.ones(1)).sum(), model=model, state_file=file)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.raises(ValueError, match=r"state\.pt is damaged or another network's .*: delete it to start anew"):
        run(lambda *_: model(torch.ones(1)).sum(), model=model, state_file=file)
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=r"state\.pt is damaged or another network's"):
        run(lambda *_: pytest.fail("work was begun"), model=nn.Linear(2, 1), state_file=file)


def test_conditions_name_the_command_and_the_checkpoint_before(tmp_path):
    fresh = conditions("embedded/resnet20", 6, 0.2, 1, None, {})
    assert fresh["command"] == "python -m zsq_lab train --model embedded/resnet20 --epochs 6 --lr 0.2 --seed 1"
    assert set(fresh) == {"command", "machine", "torch"} and f"{torch.get_num_threads()} threads" in fresh["machine"]
    again = conditions("embedded/resnet20", 6, 0.2, 1, tmp_path / "x.safetensors", {"accuracy": 50.0, "seed": 3})
    assert again["command"] == fresh["command"] + " --start x.safetensors" and again["start_accuracy"] == 50.0
    assert "start_seed" not in again
    own = conditions("camvid/segmenter", 6, 0.2, 1, None, {}, tmp_path / "streets")
    assert own["command"].endswith("--seed 1 --data streets"), "the folder's name, not where it lies on this computer"
