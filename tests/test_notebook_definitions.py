"""What a notebook builds behaves as the module: every definition that shares a name with `zsq_lab` is run beside it.

A notebook's imports, constants and definitions are executed, without the cells between them. `PROBES` says for each
name how to use it; a shared name that has no probe fails, so that none slips by.
"""
import ast
from collections.abc import Callable
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
from networks import IMAGE, Residual, awaken, images
from torch import Tensor, nn

import zsq_lab
from zsq_lab import adversary, bn_stats, boxes, discrepancy, distill, equalize, folding, generators, gznq, graph, health
from zsq_lab import images as images_module
from zsq_lab import packing, quantizer, ranges, recipes, rounding, tasks, zscgan
from zsq_lab.generators import NOISE_SIZE, Generator
from zsq_lab.layers import QuantConfig, convert

matplotlib.use("Agg")
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
X = images(3, (4, 5)) * torch.tensor([0.01, 1.0, 0.0, 30.0]).reshape(4, 1)
SCALE, ZERO_POINT = torch.tensor(0.3), torch.tensor(3.0)


def gradients(function: Callable) -> list[Tensor]:
    """Of fake_quantize: to the values and to the scale, where the notebook's version has got that far."""
    x, scale = X.clone().requires_grad_(), SCALE.clone().requires_grad_()
    y = function(x, scale, ZERO_POINT, 0, 7)
    slope = torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True)[0]
    if slope is None or slope.count_nonzero() == 0:
        return []  # a first version that only rounds has no gradient to compare
    return list(torch.autograd.grad((y * X).sum(), (x, scale)))


def statistics_of(manager: type) -> list:
    model = awaken(Residual())
    with torch.no_grad(), manager(model) as statistics:
        model(images(4))
        result = [statistics.loss(), statistics.distances()]
    return [*result, sum(len(m._forward_pre_hooks) for m in model.modules())]


def optimised(function: Callable) -> list[Tensor]:
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)))
    made, labels = function(model.requires_grad_(False), 12, (3, 8, 8), iterations=3, seed=2)
    return [made, labels]


def folded(function: Callable) -> Tensor:
    model = awaken(Residual())
    return function(model, graph.trace(model, (3, 8, 8)))(images(4))


def sizes_of(kind: type) -> list:
    """A FeatureDiscrepancy over three batches, and the running sizes that it ends with."""
    measure = kind()
    pairs = [({"a": images(4, seed=i), "b": images(4, (6,), seed=i)}, {"a": images(4), "b": images(4, (6,))})
             for i in (2, 3, 4)]
    return [measure(*pair) for pair in pairs] + [dict(measure.size)]


def played(function: Callable) -> list:
    """The numbers of a tiny game by the paper's rules, and one image that its generator draws at the end."""
    teacher, student = convert(awaken(Residual()), QuantConfig(4, 4), IMAGE)
    ranges.fit_weight_ranges(student, search=False)
    ranges.fit_input_ranges(student, [images(8)], search=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(IMAGE, 5, widths=(4, 4)).requires_grad_(False)
    log: list[dict] = []
    function(generator, student, teacher, ["conv_b", "fc"], rules=adversary.Rules(student_steps=2), iterations=3,
             learning_rate=1e-4, batch_size=4, seed=1, on_step=lambda _, numbers: log.append(numbers))
    kept = ("output", "feature", "activation", "student")
    return [*({name: numbers[name] for name in kept} for numbers in log),
            generator(images(2, (NOISE_SIZE,)), torch.tensor([0, 3]))]


def seeded(kind: type, shape: tuple[int, ...] = IMAGE, classes: int = 5):
    """A generator with the weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(shape, classes)


def drawn(kind: type, shape: tuple[int, ...], classes: int) -> list[Tensor]:
    """What a Generator makes of fixed codes and labels, and of a random generator."""
    with torch.no_grad():
        generator = seeded(kind, shape, classes)
        made = generator(images(6, (NOISE_SIZE,)), torch.arange(6) % classes)
        return [made, *generator.sample(7, torch.Generator().manual_seed(1))]


def trained(function: Callable, settings: zscgan.Settings) -> list:
    """The images of a generator after two steps, and the losses on the way."""
    teacher, generator, log = convert(awaken(Residual()), QuantConfig(), IMAGE)[0], seeded(Generator), []
    function(generator, teacher, iterations=2, batch_size=10, settings=settings, seed=1,
             on_step=lambda iteration, losses: log.append([losses["statistics"], losses["class"]]))
    with torch.no_grad():
        return [generator(images(10, (NOISE_SIZE,)), torch.arange(10) % 5) / 100, log]  # Adam enlarges rounding errors


def under_a_prior(function: Callable) -> list[Tensor]:
    with torch.random.fork_rng():
        made, labels = function(convert(awaken(Residual()), QuantConfig(), IMAGE)[0], 10, IMAGE, iterations=2, seed=3)
    return [made / 100, labels]


ERROR = (torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) - 0.4).clamp(-0.5, 0.5)
ALLOWED = torch.rand(5, 9, generator=torch.Generator().manual_seed(1)) < 0.8
MOMENTS = [torch.rand(6, generator=torch.Generator().manual_seed(i)) + 0.1 for i in range(4)]
ROWS = images(4, (300,)) ** 3

# name -> (the module's own, ways to use it whose results are compared)
PROBES: dict[str, tuple[Callable, list[Callable]]] = {
    "packed_bytes": (packing.packed_bytes, [lambda f, n=n, b=b: f(n, b) for n in (1, 8, 1001) for b in (2, 3, 4, 8)]),
    "integer_range": (quantizer.integer_range, [
        lambda f, b=b, s=s: f(b, symmetric=s) for b in (1, 2, 3, 8, 16, 17) for s in (True, False)]),
    "qparams_from_range": (quantizer.qparams_from_range, [
        lambda f, b=b, s=s: f(X.amin((0, 2)), X.amax((0, 2)), b, symmetric=s)
        for b in (2, 4, 8) for s in (True, False)]),
    "choose_qparams": (quantizer.choose_qparams, [
        *(lambda f, a=a, s=s: f(X, 4, symmetric=s, axis=a) for a in (None, 0, 1, -1) for s in (True, False)),
        lambda f: f(torch.tensor([1.0, torch.nan]), 4, symmetric=True), lambda f: f(torch.ones(0), 4, symmetric=True)]),
    "quantize": (quantizer.quantize, [
        lambda f: f(X, SCALE, ZERO_POINT, 0, 7), lambda f: f(X, SCALE.reshape(1, 1, 1), ZERO_POINT, -8, 7),
        lambda f: f(torch.arange(-9, 9) * 0.25, torch.tensor(0.5), torch.tensor(1.0), -4, 3)]),
    "dequantize": (quantizer.dequantize, [lambda f: f(torch.arange(8, dtype=torch.int32), SCALE, ZERO_POINT)]),
    "fake_quantize": (quantizer.fake_quantize, [
        lambda f: f(X, SCALE, ZERO_POINT, 0, 7),
        lambda f: f(X, torch.tensor([0.1, 0.2, 0.5, 1.0]).reshape(1, 4, 1), torch.zeros(1, 4, 1), -8, 7)]),
    "search_ranges": (ranges.search_ranges, [lambda f, s=s: f(ROWS, 4, symmetric=s) for s in (True, False)]),
    "full_ranges": (ranges.full_ranges, [lambda f: f(ROWS)]),
    "fold_batchnorms": (folding.fold_batchnorms, [folded]),
    "affine": (folding.affine, [lambda f: f(awaken(nn.BatchNorm2d(4))), lambda f: f(nn.BatchNorm2d(4, affine=False))]),
    "batch_statistics": (bn_stats.batch_statistics, [
        lambda f: f(X), lambda f: f(images(4)), lambda f: f(torch.ones(3, 2))]),
    "layer_distance": (bn_stats.layer_distance, [lambda f: f(*MOMENTS), lambda f: f(*MOMENTS[:2], *MOMENTS[:2])]),
    "stored_statistics": (bn_stats.stored_statistics, [
        lambda f: f(awaken(nn.BatchNorm2d(4))), lambda f: f(folding.FoldedBatchNorm(*MOMENTS[:2]))]),
    "BatchNormStatistics": (bn_stats.BatchNormStatistics, [statistics_of]),
    "ClippedReLU": (equalize.ClippedReLU, [
        lambda f: f(MOMENTS[0][:3])(images(2)), lambda f: f(MOMENTS[0][:5])(X[0, :2])]),
    "output_rows": (equalize.output_rows, [lambda f: f(awaken(nn.Conv2d(4, 6, 3, groups=2)))]),
    "input_rows": (equalize.input_rows, [lambda f: f(awaken(nn.Conv2d(4, 6, 3, groups=2)))]),
    "flip_sums": (rounding.flip_sums, [lambda f: f(ERROR, ALLOWED), lambda f: f(-ERROR, torch.ones_like(ALLOWED))]),
    "squant_integers": (rounding.squant_integers, [
        lambda f: f(5 * images(3, (4, 9)), torch.ones(1), torch.zeros(1), -8, 7)]),
    "colour": (images_module.colour, [lambda f: f(images(4)), lambda f: f(images(2, (3, 8, 6)))]),
    "optimise_images": (images_module.optimise_images, [optimised]),
    "output_loss": (distill.output_loss, [lambda f: f(images(4, (10,)), images(4, (10,), seed=2))]),
    "relative_error": (distill.relative_error, [lambda f: f(images(4), images(4, seed=2)), lambda f: f(X, X)]),
    "pixel_loss": (tasks.pixel_loss, [lambda f: f(images(4), images(4, seed=2)), lambda f: f(images(4), images(4))]),
    "to_boxes": (boxes.to_boxes, [lambda f: f(images(2, (6, 4)), boxes.locations(2, 3, 4), 4),
                                  lambda f: f(torch.full((1, 4), 1e4), torch.zeros(1, 2), 4)]),
    "output_discrepancy": (discrepancy.output_discrepancy, [lambda f: f(images(4, (10,)), images(4, (10,), seed=2))]),
    "channel_relations": (discrepancy.channel_relations, [
        lambda f: f(images(4)), lambda f: f(images(4, (10,))), lambda f: f(torch.zeros(2, 3, 4, 4))]),
    "relation_discrepancy": (discrepancy.relation_discrepancy, [lambda f: f(images(4), images(4, seed=2))]),
    "FeatureDiscrepancy": (discrepancy.FeatureDiscrepancy, [sizes_of]),
    "activation_term": (discrepancy.activation_term, [lambda f: f(images(4, (10,)))]),
    "play": (adversary.play, [played]),
    "Generator": (generators.Generator, [lambda f: drawn(f, IMAGE, 5), lambda f: drawn(f, (3, 32, 32), 10)]),
    "squared_distance": (bn_stats.squared_distance, [lambda f: f(*MOMENTS), lambda f: f(*MOMENTS[:2], *MOMENTS[:2])]),
    "gaussian_kl": (bn_stats.gaussian_kl, [
        lambda f: f(*MOMENTS), lambda f: f(MOMENTS[0], 0 * MOMENTS[1], *MOMENTS[2:]),
        lambda f: f(*MOMENTS[:3], torch.cat([MOMENTS[3][:5], torch.zeros(1)]))]),
    "similarity": (zscgan.similarity, [lambda f: f(images(4)), lambda f: f(torch.ones(3, 2))]),
    "one_cycle": (zscgan.one_cycle, [lambda f, i=i: f(i / 10) for i in range(11)]),
    "train_generator": (zscgan.train_generator, [
        lambda f: trained(f, zscgan.LAB), lambda f: trained(f, zscgan.PAPER)]),
    "variety": (health.variety, [
        lambda f: f(images(4)), lambda f: f(torch.ones(3, 2)), lambda f: f(images(6), torch.arange(6) % 2)]),
    "prior_images": (gznq.prior_images, [under_a_prior]),
    "pool_sampler": (recipes.pool_sampler, [lambda f: f(images(9), 16)(torch.Generator().manual_seed(0))]),
}


def public_names() -> dict[str, list[str]]:
    """Public functions and classes of the module -> the files that define them."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(zsq_lab.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(path.name)
    return found


def statements(path: Path) -> list[ast.stmt]:
    """The top-level statements of all code cells, without magics."""
    notebook = nbformat.read(path, as_version=4)
    sources = ["\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
               for cell in notebook.cells if cell.cell_type == "code"]
    return [node for source in sources for node in ast.parse(source).body]


def is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def outcome(function: Callable, probe: Callable):
    """What the probe gives, or the kind of error that it raises."""
    try:
        return probe(function)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__


def assert_same(own, expected) -> None:
    if isinstance(expected, str | dict):
        assert own == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-5))
    elif isinstance(expected, tuple | list):
        assert len(own) == len(expected)
        for a, b in zip(own, expected, strict=True):
            assert_same(a, b)
    else:
        torch.testing.assert_close(torch.as_tensor(own), torch.as_tensor(expected), rtol=1e-5, atol=1e-6)


def compare(name: str, own: Callable) -> None:
    """Run each probe on both. Raises AssertionError that names the probe's number."""
    reference, probes = PROBES[name]
    for number, probe in enumerate(probes, 1):
        try:
            assert_same(outcome(own, probe), outcome(reference, probe))
        except AssertionError as error:
            raise AssertionError(f"{name} differs from zsq_lab's in probe {number} of {len(probes)}: {error}") from None
    if name == "fake_quantize" and (found := gradients(own)):
        assert_same(found, gradients(reference))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_definitions_behave_as_the_module(path):
    names, namespace, compared = public_names(), {"__name__": path.stem}, []
    for node in statements(path):
        is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not (is_definition or isinstance(node, ast.Import | ast.ImportFrom) or is_constant(node)):
            continue
        shared = is_definition and node.name in names
        try:
            exec(compile(ast.Module([node], []), str(path), "exec"), namespace)
        except NameError:
            assert not shared, f"{path.name}: {node.name} needs what only a running notebook has"
            continue  # a default taken from a computed value: not a piece of the module
        if shared:
            assert node.name in PROBES, (f"{path.name} defines {node.name}, as zsq_lab/{names[node.name][0]} does: "
                                         "give it a probe in tests/test_notebook_definitions.py or another name")
            compare(node.name, namespace[node.name])
            compared.append(node.name)
    print(f"{path.name}: {len(compared)} definitions compared: {', '.join(compared)}")


@pytest.mark.parametrize("name", PROBES)
def test_probes_accept_the_module_itself(name):
    compare(name, PROBES[name][0])


@pytest.mark.parametrize("name, wrong", [
    ("quantize", lambda x, s, z, a, b: ((x / s).floor() + z).clamp(a, b).to(torch.int32)),
    ("fake_quantize", lambda x, s, z, a, b: ((x / s + z).round() - z) * s),
    ("integer_range", lambda bits, *, symmetric: (0, 2**bits - 1)),
    ("batch_statistics", lambda x: (x.mean((0, 2)), x.var((0, 2)))),
    ("layer_distance", lambda m, s, sm, ss: (m - sm).square().sum() + (s - ss).square().sum()),
    ("flip_sums", lambda error, allowed: torch.zeros_like(error))])
def test_probes_notice_a_wrong_definition(name, wrong):
    with pytest.raises(AssertionError, match="differs from zsq_lab's"):
        compare(name, wrong)
