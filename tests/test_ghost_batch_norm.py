"""Does each virtual batch normalize itself, and do the running statistics stay those of the data?"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from averaging_toys import restore
from lightning_toys import PACKAGES, QUIET, make_trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning.batch_norm import BatchNormSync, pool_moments
from playbook_plugins.lightning.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_to_ghost_batch_norm,
)

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Tensors this small gain nothing from more.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Inductor compiles C++ on the CPU.
COMPILER = "inductor" if shutil.which("g++") else "aot_eager"
SHAPES = {1: (3,), 2: (3, 2, 2), 3: (3, 1, 2, 2)}
GHOSTS = {1: GhostBatchNorm1d, 2: GhostBatchNorm2d, 3: GhostBatchNorm3d}
PLAIN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def data(n_examples: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_examples, *shape, generator=generator, dtype=torch.float64) * 2 + 3
    # A drift along the batch: its chunks differ, so that a wrong grouping shows.
    drift = torch.arange(n_examples, dtype=torch.float64).view(-1, *[1] * len(shape)) / 10
    return (values + drift).to(dtype)


def randomize(layer: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            if values is not None:
                values.copy_(torch.rand_like(values) + 0.5)
    return layer


def by_chunks(x: Tensor, size: int, weight: Any, bias: Any) -> Tensor:
    """Return the definition: each chunk of consecutive examples by its own mean and biased variance."""
    chunks = list(x.split(size))
    if len(chunks) > 1 and chunks[-1].numel() == x.shape[1]:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    shape = (1, -1, *[1] * (x.dim() - 2))
    outputs = []
    for chunk in chunks:
        kept = [axis for axis in range(x.dim()) if axis != 1]
        mean = chunk.mean(kept, keepdim=True)
        variance = (chunk - mean).square().mean(kept, keepdim=True)
        outputs.append((chunk - mean) / (variance + 1e-5).sqrt())
    output = torch.cat(outputs)
    return output if weight is None else output * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 32, 64])
def test_equals_the_definition_for_every_batch_size(dimension, size):
    ghost = randomize(GHOSTS[dimension](3, size, dtype=torch.float64))
    # One example of one value a channel has no variance: torch refuses it.
    for n_examples in range(2 if dimension == 1 else 1, 131):
        plain = PLAIN[dimension](3, dtype=torch.float64)
        plain.load_state_dict(ghost.state_dict())
        x = data(n_examples, *SHAPES[dimension], seed=n_examples).requires_grad_()
        expected_x = x.detach().clone().requires_grad_()
        weight, bias = (values.detach().clone().requires_grad_() for values in (ghost.weight, ghost.bias))
        output, expected = ghost(x), by_chunks(expected_x, size, weight, bias)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        slope = data(n_examples, *SHAPES[dimension], seed=99)
        gradients = torch.autograd.grad((output * slope).sum(), [x, ghost.weight, ghost.bias])
        references = torch.autograd.grad((expected * slope).sum(), [expected_x, weight, bias])
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-11, atol=1e-10)
        # The running statistics are those of ordinary batch normalization over the whole batch.
        plain(x.detach())
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ghost.state_dict()[name], value, rtol=1e-12, atol=1e-12)
        ghost.eval()
        plain.load_state_dict(ghost.state_dict())
        assert torch.equal(ghost(x), plain.eval()(x))
        ghost.train()


@pytest.mark.parametrize("layer", [GhostBatchNorm1d(3, 8), GhostBatchNorm1d(3, 8, mode="subsample")])
def test_a_single_value_raises_as_torch_does(layer):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        layer(torch.zeros(1, 3))
    assert torch.equal(layer.eval()(torch.zeros(1, 3)), nn.BatchNorm1d(3).eval()(torch.zeros(1, 3)))


def test_a_remainder_without_variance_joins_the_chunk_before():
    x = data(17, 3)
    output = GhostBatchNorm1d(3, 8, dtype=torch.float64)(x)
    expected = torch.cat([functional.batch_norm(part, None, None, training=True) for part in (x[:8], x[8:])])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    # A third dimension gives it a variance: then it stands alone.
    long = data(17, 3, 4)
    alone = GhostBatchNorm1d(3, 8, dtype=torch.float64)(long)
    torch.testing.assert_close(
        alone[16:], functional.batch_norm(long[16:], None, None, training=True), rtol=0, atol=1e-12
    )


def test_by_hand():
    layer = GhostBatchNorm1d(1, 2, eps=1e-300, momentum=1.0, dtype=torch.float64)
    output = layer(torch.tensor([[0.0], [2.0], [10.0], [14.0]]).double())
    assert output.flatten().tolist() == [-1.0, 1.0, -1.0, 1.0]
    # The mean of all four, and their squares around it, (42.25 + 20.25 + 12.25 + 56.25) / 3, not (2 + 8) / 2.
    assert float(layer.running_mean) == 6.5
    assert float(layer.running_var) == pytest.approx(131 / 3, rel=1e-15)


def test_subsample_by_hand():
    layer = GhostBatchNorm1d(1, 2, mode="subsample", eps=1e-300, momentum=1.0, dtype=torch.float64)
    # Examples floor(0 · 5 / 2) = 0 and floor(1 · 5 / 2) = 2: mean 2, standard deviation 2.
    output = layer(torch.tensor([[0.0], [9.0], [4.0], [2.0], [3.0]]).double())
    assert output.flatten().tolist() == [-1.0, 3.5, 1.0, 0.0, 0.5]
    assert (float(layer.running_mean), float(layer.running_var)) == (2.0, 8.0)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_subsample_below_the_virtual_size_is_ordinary(dimension):
    ghost = randomize(GHOSTS[dimension](3, 64, mode="subsample"))
    plain = PLAIN[dimension](3)
    plain.load_state_dict(ghost.state_dict())
    for n_examples in (2, 63, 64):
        x = data(n_examples, *SHAPES[dimension], dtype=torch.float32)
        assert torch.equal(ghost(x), plain(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[name], value)


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
@pytest.mark.parametrize("dimension", [1, 2])
def test_gradients_pass_gradcheck(mode, dimension):
    layer = randomize(GHOSTS[dimension](3, 3, mode=mode, dtype=torch.float64))
    x = data(7, *SHAPES[dimension]).requires_grad_()

    def function(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (values,))

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_way_of_computing_gives_the_same(mode, large, channels_last):
    # Large chunks and other memory formats take another path than small ones: the result is that of the loop.
    x = data(21, 3, *((48, 48) if large else (2, 2)))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = randomize(GhostBatchNorm2d(3, 8, mode=mode, dtype=torch.float64))
    output = layer(x)
    if mode == "chunks":
        expected = by_chunks(x, 8, layer.weight, layer.bias)
    else:
        sample = x[[i * 21 // 8 for i in range(8)]]
        variance, mean = torch.var_mean(sample, dim=(0, 2, 3), correction=0)
        expected = functional.batch_norm(x, mean, variance, layer.weight, layer.bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    if mode == "chunks":
        assert output.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_cumulative_average(mode):
    layer = GhostBatchNorm1d(3, 8, mode=mode, momentum=None, dtype=torch.float64)
    plain = nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    for seed in range(4):
        x = data(20, 3, seed=seed)
        layer(x)
        plain(x if mode == "chunks" else x[[i * 20 // 8 for i in range(8)]])
    assert layer.num_batches_tracked.dtype == torch.int64
    assert int(layer.num_batches_tracked) == 4
    torch.testing.assert_close(layer.running_mean, plain.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.running_var, plain.running_var, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_without_running_statistics_or_parameters(mode):
    layer = GhostBatchNorm1d(3, 8, mode=mode, affine=False, track_running_stats=False, dtype=torch.float64)
    x = data(16, 3)
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    trained = layer(x)
    if mode == "chunks":
        torch.testing.assert_close(trained, by_chunks(x, 8, None, None), rtol=0, atol=1e-12)
    plain = nn.BatchNorm1d(3, affine=False, track_running_stats=False).eval()
    assert torch.equal(layer.eval()(x), plain(x))
    assert not torch.equal(trained, plain(x))


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_tracking_turned_off_later_leaves_the_statistics(mode):
    layer = GhostBatchNorm1d(3, 8, mode=mode)
    layer.track_running_stats = False
    layer(data(20, 3, dtype=torch.float32))
    assert layer.running_mean.tolist() == [0.0] * 3
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("whole", [False, True])
def test_half_precision(mode, dtype, whole):
    x = data(130, 3, 4, 4)
    reference = GhostBatchNorm2d(3, 32, mode=mode, dtype=torch.float64)
    layer = GhostBatchNorm2d(3, 32, mode=mode, dtype=dtype if whole else torch.float32)
    output = layer(x.to(dtype))
    assert output.dtype == dtype
    assert layer.running_var.dtype == (dtype if whole else torch.float32)
    torch.testing.assert_close(output.double(), reference(x), rtol=0.05, atol=0.1)
    torch.testing.assert_close(layer.running_var.double(), reference.running_var, rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_autocast(mode):
    model = convert_to_ghost_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 8, mode)
    x = data(20, 3, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert model[1].running_mean.dtype == torch.float32
    assert torch.isfinite(model[0].weight.grad).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_compiled_equals_eager(mode):
    eager = randomize(GhostBatchNorm2d(3, 8, mode=mode))
    compiled_layer = copy.deepcopy(eager)
    compiled = torch.compile(compiled_layer, fullgraph=True, backend=COMPILER)
    for seed in range(2):
        x = data(21, 3, 2, 2, seed=seed, dtype=torch.float32).requires_grad_()
        y = x.detach().clone().requires_grad_()
        expected, output = eager(x), compiled(y)
        torch.testing.assert_close(output, expected)
        slope = data(21, 3, 2, 2, seed=9, dtype=torch.float32)
        (gradient,) = torch.autograd.grad((output * slope).sum(), y)
        torch.testing.assert_close(gradient, *torch.autograd.grad((expected * slope).sum(), x), rtol=1e-4, atol=1e-4)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled_layer.state_dict()[name], value)


def network() -> nn.Module:
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared, nn.Flatten(), nn.Linear(64, 5),
        nn.BatchNorm1d(5, eps=1e-3, momentum=None, affine=False),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_conversion_keeps_everything_but_the_class(mode):
    model = network().double()
    model[7].eval()
    before, names = dict(model.named_parameters()), list(model.state_dict())
    buffers = {name: id(value) for name, value in model.named_buffers()}
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    converted = convert_to_ghost_batch_norm(model, 8, mode)
    assert converted is model
    assert type(model[1]) is GhostBatchNorm2d
    assert type(model[7]) is GhostBatchNorm1d
    assert model[1] is model[4]
    assert (model[7].eps, model[7].momentum, model[7].affine, model[7].training) == (1e-3, None, False, False)
    assert all(value is before[name] for name, value in model.named_parameters())
    assert {name: id(value) for name, value in model.named_buffers()} == buffers
    assert list(model.state_dict()) == names
    assert all(value.dtype == torch.float64 for value in model.parameters())
    old = model[1].weight.detach().clone()
    model(data(20, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert len(calls) == 2  # the layer stands at two places
    assert not torch.equal(model[1].weight, old)
    # Again changes the size alone.
    assert convert_to_ghost_batch_norm(model, 4, "chunks") is model
    assert (model[1].virtual_batch_size, model[1].mode) == (4, "chunks")


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_a_single_layer_is_converted_too(dimension):
    layer = convert_to_ghost_batch_norm(PLAIN[dimension](3, dtype=torch.float64), 8)
    assert type(layer) is GHOSTS[dimension]
    assert isinstance(layer, PLAIN[dimension])
    x = data(20, *SHAPES[dimension])
    torch.testing.assert_close(layer(x), by_chunks(x, 8, None, None), rtol=0, atol=1e-12)


def test_state_dicts_fit_both_ways():
    plain = network()
    plain(data(20, 1, 8, 8, dtype=torch.float32))
    ghost = convert_to_ghost_batch_norm(network(), 8)
    ghost.load_state_dict(plain.state_dict())
    x = data(20, 1, 8, 8, seed=1, dtype=torch.float32)
    assert torch.equal(ghost.eval()(x), plain.eval()(x))
    ghost.train()(x)
    again = network()
    again.load_state_dict(ghost.state_dict())
    assert torch.equal(ghost.eval()(x), again.eval()(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(duplicate):
    layer = randomize(GhostBatchNorm1d(3, 8, mode="subsample", dtype=torch.float64))
    other = duplicate(layer)
    x = data(20, 3)
    assert torch.equal(layer(x), other(x))
    assert (other.virtual_batch_size, other.mode) == (8, "subsample")


def test_what_a_layer_shows():
    plain = repr(nn.BatchNorm1d(3))[len("BatchNorm1d(") : -1]
    assert repr(GhostBatchNorm1d(3, 8)) == f"GhostBatchNorm1d({plain}, virtual_batch_size=8, mode='chunks')"


@pytest.mark.parametrize(
    "make", [lambda size: GhostBatchNorm1d(3, size), lambda size: convert_to_ghost_batch_norm(network(), size)]
)
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make(0)
    assert str(caught.value) == (
        "`virtual_batch_size` is 0: it must be at least 1, in examples. The playbook reports that about 64 works well."
    )


@pytest.mark.parametrize(
    "make",
    [lambda mode: GhostBatchNorm1d(3, 8, mode=mode), lambda mode: convert_to_ghost_batch_norm(network(), 8, mode)],
)
def test_other_modes_are_refused(make):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make("split")
    assert str(caught.value) == (
        "`mode` is 'split': it must be one of 'chunks', 'subsample'. Take 'chunks' to normalize every example by its "
        "own chunk, 'subsample' to normalize all by a part of the batch."
    )


def test_one_value_has_no_variance():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        GhostBatchNorm1d(3, 1, mode="subsample")(torch.zeros(4, 3))
    assert str(caught.value) == (
        "`virtual_batch_size` is 1 and each example has one value a channel (input of shape (4, 3)): one value has no "
        "variance. Take at least 2."
    )


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert_to_ghost_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d()), 8)
    assert str(caught.value) == (
        "`model` holds LazyBatchNorm1d at '1', whose size is not known yet. Run one batch through the model first."
    )


class Custom(nn.BatchNorm1d):
    pass


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm(3), Custom(3)])
def test_other_batch_normalization_is_refused_and_the_model_left_alone(layer):
    model = nn.Sequential(nn.BatchNorm1d(3), layer)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert_to_ghost_batch_norm(model, 8)
    assert str(caught.value) == (
        f"`model` holds {type(layer).__name__} at '1', and only BatchNorm1d, BatchNorm2d and BatchNorm3d themselves "
        "are converted: what the class adds would be lost. Replace that layer first, or convert the other parts of "
        "the model alone."
    )
    assert type(model[0]) is nn.BatchNorm1d
    with pytest.raises(ValueError, match="`model` holds SyncBatchNorm, and only"):
        convert_to_ghost_batch_norm(nn.SyncBatchNorm(3), 8)


class _ConvNet:
    """A small network of images; it keeps what its layer of statistics saw."""

    def __init__(
        self, ghost: int | None, mode: str = "chunks", compiled: bool = False, learning_rate: float = 0.1
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = network()
        if ghost is not None:
            convert_to_ghost_batch_norm(self.net, ghost, mode)
        self.run = torch.compile(self.net[:5], backend="eager") if compiled else self.net[:5]
        self.losses: list[float] = []

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self.net[5:](self.run(x.to(self.net[0].weight.dtype))).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # Each rank has images of its own brightness.
        loss = self.step([batch[0] + self.trainer.global_rank, batch[1]])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class PytorchLightningConvNet(_ConvNet, pytorch_lightning.LightningModule):
    pass


class LightningConvNet(_ConvNet, lightning.pytorch.LightningModule):
    pass


MODULES = {"pytorch_lightning": PytorchLightningConvNet, "lightning.pytorch": LightningConvNet}


def conv_net(package: Any, *args: Any, **kwargs: Any) -> Any:
    return MODULES[package.__name__](*args, **kwargs)


def images(batch_size: int = 20) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=batch_size)


def fit(package: Any, model: Any, folder: Path, callbacks: Any = (), batch_size: int = 20, **options: Any) -> Any:
    trainer = make_trainer(package, list(callbacks), default_root_dir=folder, max_epochs=4, **options)
    trainer.fit(model, images(batch_size), images(30))
    return trainer


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_a_network_learns(tmp_path, package, mode):
    model = conv_net(package, 8, mode)
    fit(package, model, tmp_path)
    assert sum(model.losses[-3:]) < 0.8 * sum(model.losses[:3])
    assert int(model.net[7].num_batches_tracked) == 12
    plain = conv_net(package, None)
    fit(package, plain, tmp_path)
    # The grouping is real: training differs from ordinary batch normalization.
    assert model.losses[0] != pytest.approx(plain.losses[0], rel=1e-4)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_virtual_size_of_the_whole_batch_is_ordinary_training(tmp_path, package):
    ghost, plain = conv_net(package, 20), conv_net(package, None)
    fit(package, ghost, tmp_path, accumulate_grad_batches=2)
    fit(package, plain, tmp_path, accumulate_grad_batches=2)
    assert ghost.losses == plain.losses
    for name, value in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[name], value), name


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_precisions(tmp_path, package, precision):
    model = conv_net(package, 8)
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        # Without it, Lightning takes bfloat16 on the CPU.
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        options = {"plugins": [package.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)]}
    fit(package, model, tmp_path, **options)
    dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert model.net[1].running_var.dtype == dtype
    assert all(loss == loss and loss < 3 for loss in model.losses)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["chunks", "subsample"])
def test_on_a_gpu_without_a_sync(mode):
    layer = GhostBatchNorm2d(3, 8, mode=mode).cuda()
    x = data(21, 3, 4, 4, dtype=torch.float32).cuda()
    reference = GhostBatchNorm2d(3, 8, mode=mode)
    expected = reference(x.cpu())
    layer(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.float16):
            output = layer(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_compiled_network_trains_the_same(tmp_path):
    eager, compiled = conv_net(pytorch_lightning, 8), conv_net(pytorch_lightning, 8, compiled=True)
    fit(pytorch_lightning, eager, tmp_path)
    fit(pytorch_lightning, compiled, tmp_path)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)


class _TwoByHand:
    """Two networks with a layer of statistics and an optimizer each, optimized by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)) for _ in range(2))
        convert_to_ghost_batch_norm(self.nets, 4)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip(self.nets, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward((net(batch[0]) - 1).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]


@pytest.mark.parametrize("package", PACKAGES)
def test_two_optimizers_by_hand(tmp_path, package):
    model = type("TwoByHand", (_TwoByHand, package.LightningModule), {})()
    loader = DataLoader(TensorDataset(data(24, 3, dtype=torch.float32)), batch_size=12)
    make_trainer(package, [], default_root_dir=tmp_path, max_epochs=2).fit(model, loader)
    for norm, _ in model.nets:
        assert int(norm.num_batches_tracked) == 4
        assert not torch.equal(norm.weight, torch.ones(3))


def fit_two(package: Any, folder: Path, strategy: str) -> Any:
    """Train with two processes of other images each, without learning; return the module."""
    model = MODULES[package.__name__](8, learning_rate=0.0)
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    fit(package, model, folder, [BatchNormSync()], **options)
    return model


def check_two(net: nn.Module) -> None:
    """Compare with ranks that train alone and pool their running statistics."""
    alone = [convert_to_ghost_batch_norm(network(), 8) for _ in range(2)]
    for rank, own in enumerate(alone):
        for _ in range(4):
            for x, _ in images():
                own(x + rank)
    for place in (1, 7):
        names = ("running_mean", "running_var")
        own = [torch.stack([getattr(other[place], name) for other in alone]) for name in names]
        assert not torch.equal(*own[0])
        for name, expected in zip(names, pool_moments(*own), strict=True):
            torch.testing.assert_close(getattr(net[place], name), expected, rtol=1e-5, atol=1e-6)
        assert int(net[place].num_batches_tracked) == int(alone[0][place].num_batches_tracked)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_spawned_processes_split_their_own_batches(tmp_path, package):
    environment = dict(os.environ)
    try:
        check_two(fit_two(package, tmp_path, "ddp_spawn").net)
    finally:
        restore(environment)


SCRIPT = """
import sys, importlib, torch
sys.path.insert(0, {tests!r})
from test_ghost_batch_norm import fit_two
from pathlib import Path
for name in ("pytorch_lightning", "lightning.pytorch"):
    model = fit_two(importlib.import_module(name), Path({folder!r}), "ddp")
    if torch.distributed.get_rank() == 0:
        torch.save(model.net.state_dict(), {folder!r} + "/" + name)
"""


@pytest.mark.slow
def test_two_processes_split_their_own_batches(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    subprocess.run([sys.executable, script], check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for name in MODULES:
        net = convert_to_ghost_batch_norm(network(), 8)
        net.load_state_dict(torch.load(tmp_path / name))
        check_two(net)


def test_every_argument_of_torch_is_taken():
    names = [name for name in inspect.signature(nn.BatchNorm1d).parameters if name not in ("num_features", "bias")]
    options = {
        "eps": 0.1,
        "momentum": 0.3,
        "affine": False,
        "track_running_stats": False,
        "device": "cpu",
        "dtype": None,
    }
    assert set(names) == set(options)
    for name, value in itertools.islice(options.items(), 4):
        assert getattr(GhostBatchNorm1d(3, 8, **{name: value}), name) == value
