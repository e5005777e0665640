"""The recorded tables' plans: every item once, every setting one that the lab knows, seed after seed."""
from itertools import groupby

import pytest

from zsq_lab.checkpoints import MODELS
from zsq_lab.imagenet_models import PACKAGED
from zsq_lab.job import BUDGETS
from zsq_lab.layers import QuantConfig
from zsq_lab.plans import PLANS, SEEDS
from zsq_lab.recipes import RECIPES


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_has_no_item_twice_and_the_same_for_every_seed(name):
    items = list(PLANS[name]())
    assert len(items) == len(set(items)) > (50 if name == "imagenet" else 100)
    assert {item.seed for item in items} == set(SEEDS) == {0, 1, 2}
    settings = [{(item.group()[:-1], str(item).rpartition(" seed ")[0]) for item in items if item.seed == seed}
                for seed in SEEDS]
    assert settings[0] == settings[1] == settings[2]
    assert all(item.n_test is None for item in items), "recorded numbers are those of the whole test set"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_names_what_the_lab_has(name):
    for item in PLANS[name]():
        QuantConfig(item.weight_bits, item.activation_bits, item.edge_bits,
                    item.convention)  # raises where it cannot be
        assert item.model in (*MODELS, *PACKAGED) and item.recipe in {*RECIPES, "best"} and item.budget in BUDGETS
        assert not (item.recipe == "dfq" and item.convention == "literature"), "dfq refuses it"
        assert name == "widths" or item.weight_bits > 2 or item.edge_bits == 8, "two bits at the edges break every recipe"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_is_interrupted_leaves_whole_seeds(name):
    items = list(PLANS[name]())
    rounds = [seed for seed, _ in groupby(item.seed for item in items)]
    assert rounds == list(SEEDS) * (len(rounds) // len(SEEDS))
    is_long = [item.budget == "long" for item in PLANS[name]()]
    assert is_long == sorted(is_long)
