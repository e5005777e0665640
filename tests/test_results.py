"""Results: a file holds as long as what decides its number does, arrives whole, and is never trusted when damaged."""
import json
import shutil
import warnings
from dataclasses import replace

import pandas as pd
import pytest
from edited_sources import edit, fresh  # noqa: F401 (fixtures)
from small_disk import full_disk  # noqa: F401 (a fixture)
from sweep_workers import NUMBERS, items

from zsq_lab import results
from zsq_lab.checkpoints import checkpoint_path
from zsq_lab.results import (
    COLUMNS,
    Item,
    code_version,
    done,
    load,
    load_measured,
    read,
    save_csv,
    summary,
    weights_version,
    write,
)
from zsq_lab.transfer import DiskError

ITEM = Item("embedded/resnet20", "rtn-bn", 4, 4, n_test=50)


def test_every_field_of_an_item_is_in_its_digest():
    changed = {"model": "cifar10/resnet20", "recipe": "dfq", "weight_bits": 5, "activation_bits": 5, "edge_bits": 8,
               "convention": "literature", "budget": "quick", "seed": 1, "n_test": None, "size_budget": 0.125}
    assert set(changed) == set(ITEM.__dataclass_fields__)
    digests = {replace(ITEM, **{name: value}).digest() for name, value in changed.items()}
    assert len(digests | {ITEM.digest()}) == len(changed) + 1
    assert replace(ITEM).digest() == ITEM.digest() and len(ITEM.digest()) == 16


def test_an_item_of_mixed_precision_names_its_share():
    item = Item.mixed("m", "dfq", 0.125, 8, seed=2)
    assert (item.weight_bits, item.activation_bits, item.size_budget, item.seed) == (4, 8, 0.125, 2)
    assert str(item) == "m dfq W4A8 mixed in 0.125 deployable standard seed 2"


def test_the_networks_weights_are_in_the_digest(tmp_path, monkeypatch, fresh):
    before = ITEM.digest()
    copy = tmp_path / "network.safetensors"
    shutil.copy(checkpoint_path(ITEM.model), copy)
    monkeypatch.setattr(results, "checkpoint_path", lambda name: copy)
    fresh()
    assert ITEM.digest() == before, "where the file lies decides nothing"
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    fresh()
    assert ITEM.digest() != before


def test_weights_that_are_absent_are_fetched_to_name_a_result_and_not_to_read_one(tmp_path, monkeypatch, fresh):
    """Neither `sweep` on a network of torchvision depends on what came before it, nor does a table cause a download."""
    file, asked = tmp_path / "weights.pth", []

    def fetch(name):
        asked.append(name)
        file.write_bytes(b"weights")
        return file
    monkeypatch.setattr(results, "fetched", fetch)
    monkeypatch.setattr(results, "weights_file", lambda name: file)
    monkeypatch.setattr(results, "find_images", lambda: None)
    item = replace(ITEM, model="imagenet/resnet18")
    write(tmp_path / "out", item, NUMBERS)
    assert asked == ["imagenet/resnet18"] and len(load(tmp_path / "out")) == 1
    file.unlink()
    fresh()
    with pytest.warns(UserWarning, match="1 results of other code or weights are left out"):
        assert load(tmp_path / "out").empty
    assert len(asked) == 1


@pytest.mark.parametrize("file, old, new", [
    ("post_training.py", "job.fit(job.noise(job.statistics_images))", "job.fit(job.noise(7))"),  # the recipe itself
    ("job.py", "CALIBRATION_BATCH = 128", "CALIBRATION_BATCH = 64"),  # what it calls
    ("quantizer.py", "round()", "floor()"),  # and what that calls
    ("bn_stats.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n"),
    ("recipes.py", "student.eval()", "student.train()"),  # how every recipe is run
    ("models.py", "F.relu", "F.relu6"),  # the network
    ("evaluate.py", "return 100 *", "return 99 *"),  # how its result is measured
    ("shapes.py", "import numpy as np\n", "import numpy as np\nEMPTY = np.zeros(0)\n"),  # and on what
])
def test_code_that_the_recipe_runs_through_is_in_the_digest(edit, file, old, new):
    before = ITEM.digest()
    edit(file, old, new)
    assert ITEM.digest() != before


@pytest.mark.parametrize("file, old, new", [
    ("post_training.py", "def rtn_bn", "# how it is done\n\n\ndef rtn_bn"),  # a comment
    ("post_training.py", '"""Round to nearest; ranges from what BatchNorm remembers."""', '"""Something else."""'),
    ("quantizer.py", '"""', '"""Another opening. '),
    ("adversary.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n"),  # files it does not use
    ("synthetic.py", "_finetune_on(job, _optimised(job))", "_finetune_on(job, _optimised(job)[:1])"),
    ("plots.py", "import seaborn as sns\n", ""),
    ("sweep_command.py", "from pathlib import Path\n", ""),
    ("recipes.py", '"round to nearest, ranges from noise"', '"a summary"'),  # the table, where it names other recipes
    ("recipes.py", "RECIPES = {r.name: r for r in (", "RECIPES = {r.name: r for r in (  # and more to come\n    None,"),
    ("recipes.py", "from . import post_training, ", "from . import adversary, post_training, "),
])
def test_nothing_else_is(edit, file, old, new):
    before = ITEM.digest()
    edit(file, old, new)
    assert ITEM.digest() == before


def test_a_file_belongs_to_the_recipes_that_use_it(edit):
    recipes = ("rtn-bn", "real-ranges", "zeroq", "zaq", "gznq")
    before = {recipe: code_version(recipe) for recipe in recipes}
    for file, users in (("adversary.py", {"zeroq", "zaq", "gznq"}),  # one file holds the three
                        ("lab.py", {"real-ranges"}),  # it draws the images
                        ("models.py", set(recipes))):
        edit(file, "\nimport ", "\nimport math\nimport ")
        after = {recipe: code_version(recipe) for recipe in recipes}
        assert {recipe for recipe in recipes if after[recipe] != before[recipe]} == users, file
        before = after


def test_an_unknown_recipe_is_a_clear_error():
    with pytest.raises(ValueError, match="unknown recipe 'magic': expected one of rtn-noise, "):
        replace(ITEM, recipe="magic").digest()


def test_an_item_says_what_it_is():
    assert str(replace(ITEM, edge_bits=8)) == "embedded/resnet20 rtn-bn W4A4 edges 8 deployable standard seed 0"
    groups = {replace(ITEM, weight_bits=bits, edge_bits=edges).group() for bits in (2, 4) for edges in (None, 8)}
    assert len(groups) == 1 and replace(ITEM, seed=1).group() not in groups


def test_a_result_is_written_and_read_back(tmp_path):
    file = write(tmp_path / "new" / "folder", ITEM, NUMBERS)
    assert file.name == f"{ITEM.digest()}.json"
    item, row = read(file)
    assert item == ITEM and list(row) == list(COLUMNS)
    assert row == {"model": "embedded/resnet20", "recipe": "rtn-bn", "weight_bits": 4, "activation_bits": 4,
                   "edge_bits": None, "size_budget": None, "convention": "deployable", "budget": "standard",
                       "seed": 0, **NUMBERS}
    assert done(file.parent, ITEM) and not done(file.parent, replace(ITEM, seed=1))
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing half-written beside it"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[]", b'{"item": {}, "measured": {}}',
                                     b'{"day": "rainy"}', b'{"item": {"model": "m"}, "measured": []}',
                                     "truncated", "renamed"])
def test_a_damaged_or_foreign_file_is_named_and_measured_anew(tmp_path, content):
    file = write(tmp_path, ITEM, NUMBERS)
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
    elif content == "renamed":
        write(tmp_path, replace(ITEM, seed=1), NUMBERS).replace(file)
    else:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{file.name} is skipped.*delete it or move it away"):
        assert not done(tmp_path, ITEM)
    with pytest.warns(UserWarning, match="skipped|other code"):
        assert load(tmp_path).empty
    write(tmp_path, ITEM, NUMBERS)
    assert done(tmp_path, ITEM) and len(load(tmp_path)) == 1


def test_results_of_older_code_do_not_mix_with_the_present_ones(tmp_path, edit):
    old = write(tmp_path / "out", ITEM, NUMBERS | {"accuracy": 1.0})
    edit("quantizer.py", "round()", "floor()")
    assert not done(tmp_path / "out", ITEM)
    new = write(tmp_path / "out", ITEM, NUMBERS)
    assert old != new and old.exists()
    with pytest.warns(UserWarning, match="1 results of other code or weights"):
        assert load(tmp_path / "out")["accuracy"].tolist() == [90.0]


def test_a_writer_that_fails_leaves_the_old_file_and_no_piece(tmp_path, monkeypatch):
    file = write(tmp_path, ITEM, NUMBERS)

    def broken(path, text, **_):
        with open(path, "w") as half:
            half.write(text[:10])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(type(file), "write_text", broken)
    with pytest.raises(DiskError, match=f"No space left while writing .*{file.name}"):
        write(tmp_path, ITEM, NUMBERS | {"accuracy": 1.0})
    assert read(file)[1]["accuracy"] == 90.0
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_full_disk_is_a_clear_error_and_leaves_no_piece(full_disk):
    folder, fill = full_disk
    fill()
    with pytest.raises(DiskError, match="No space left while writing"):
        write(folder, ITEM, NUMBERS)
    assert [path.name for path in folder.iterdir()] == ["filler"]


def test_a_table_survives_its_csv_file(tmp_path):
    for item in (replace(ITEM, seed=1), ITEM, replace(ITEM, weight_bits=2, edge_bits=8)):
        write(tmp_path / "out", item, NUMBERS)
    table, file = load(tmp_path / "out"), tmp_path / "tables" / "results.csv"
    save_csv(table, file)
    again = load(file)
    pd.testing.assert_frame_equal(again, table.sort_values(["weight_bits", "seed"], ignore_index=True))
    assert file.read_text().splitlines()[1:3] == [
        "embedded/resnet20,rtn-bn,2,4,8,,deployable,standard,0,91.0,90.0,1.0,2.0,70000,50,1,2,none",
        "embedded/resnet20,rtn-bn,4,4,,,deployable,standard,0,91.0,90.0,1.0,2.0,70000,50,1,2,none"]
    before = file.read_bytes()
    save_csv(again.sample(frac=1, random_state=0), file)
    assert file.read_bytes() == before, "the order of rows is fixed"
    assert [path.name for path in file.parent.iterdir()] == ["results.csv"]


def test_a_folder_of_files_and_tables_is_one_table(tmp_path):
    write(tmp_path, ITEM, NUMBERS)
    save_csv(load(tmp_path), tmp_path / "results.csv")  # repeats what the folder has
    assert len(load(tmp_path)) == 1
    write(tmp_path, replace(ITEM, seed=1), NUMBERS)
    assert sorted(load(tmp_path)["seed"]) == [0, 1]
    for file in tmp_path.glob("*.json"):
        file.unlink()
    assert load(tmp_path)["seed"].tolist() == [0]
    assert list(load(tmp_path / "results.csv").columns) == list(COLUMNS)


def test_a_table_beside_the_results_brings_no_rows_of_older_code_back(tmp_path, edit):
    """Where the network is measured anew, be it at one seed; what nobody has measured here stays as it is recorded."""
    other = replace(ITEM, weight_bits=8, edge_bits=8)
    for item in (ITEM, replace(ITEM, seed=1), other):
        write(tmp_path / "out", item, NUMBERS)
    save_csv(load(tmp_path / "out"), tmp_path / "out" / "table.csv")
    edit("quantizer.py", "round()", "floor()")
    write(tmp_path / "out", ITEM, NUMBERS | {"drop": 11.0})
    with pytest.warns(UserWarning, match="3 results of other code or weights"):
        table = load(tmp_path / "out")
    lines = summary(table).set_index("weight_bits")
    assert lines.loc[4, ["drop", "spread", "seeds"]].tolist() == [11.0, 0.0, 1] and lines.loc[8, "drop"] == 1.0
    with pytest.warns(UserWarning, match="3 results of other code or weights"):
        assert load_measured(tmp_path / "out")["drop"].tolist() == [11.0]


def test_an_empty_folder_is_an_empty_table(tmp_path):
    assert list(load(tmp_path).columns) == list(COLUMNS) and load(tmp_path).empty
    assert summary(load(tmp_path)).empty


@pytest.mark.parametrize("content", ["day,weather\n1,rain\n", "", "a,b\n1,2,3,4\n"])
def test_a_foreign_table_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "notes.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match="expected \\['model', |No columns"):
        load(file)
    write(tmp_path, ITEM, NUMBERS)
    with pytest.warns(UserWarning, match="notes.csv is skipped"):
        assert len(load(tmp_path)) == 1, "beside results it costs nothing"
    assert file.read_text() == content


def test_the_summary_averages_over_the_seeds(tmp_path):
    for bits, edges, drops in ((2, 8, (1.0, 4.0, 2.5)), (4, None, (0.0, 0.5, 1.0))):
        for seed, drop in enumerate(drops):
            write(tmp_path, replace(ITEM, weight_bits=bits, edge_bits=edges, seed=seed),
                  NUMBERS | {"accuracy": 91.0 - drop, "drop": drop, "seconds": 2.0 + seed})
    write(tmp_path, replace(ITEM, seed=0, n_test=10), NUMBERS | {"n_test": 10, "drop": 50.0})  # a trial is no seed
    lines = summary(load(tmp_path)).set_index(["weight_bits", "n_test"])
    assert len(lines) == 3
    two, four = lines.loc[(2, 50)], lines.loc[(4, 50)]
    assert (two["drop"], two["spread"], two["accuracy"], two["seconds"], two["seeds"]) == (2.5, 3.0, 88.5, 3.0, 3)
    assert (four["drop"], four["spread"], four["seeds"]) == (0.5, 1.0, 3)
    assert two["edge_bits"] == 8 and pd.isna(four["edge_bits"])
    assert lines.loc[(4, 10), "seeds"] == 1


def test_reading_a_folder_says_nothing_where_nothing_is_wrong(tmp_path):
    for item in items(3):
        write(tmp_path, item, NUMBERS)
    (tmp_path / "plan.txt").write_text("not a result")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(tmp_path)) == 3
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["measured"] == NUMBERS
