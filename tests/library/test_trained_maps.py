"""Channels-last maps that are trained: convolutions, norms and pools with their gradients, against torch; and AdamW's step."""

from __future__ import annotations

import numpy as np
import pytest

from jclip import kernels
from jclip.kernels import cpu, cpu_maps, maps, plain
from jclip.model.clip import CLIP, training_mode
from jclip.model.resnet import conv
from jclip.model.trainable import trainable
from jclip.runtime import jt
from jclip.weights.checkpoint import load_strict, random_arrays
from tests.library.test_kernels import IMPLEMENTATIONS, needs_onednn
from tests.library.test_kernels_products import needs_half, norm_of, normal, rounded
from tests.toys import TOYS, shapes_of, toy_batch

torch = pytest.importorskip("torch", reason="the reference is not installed: pip install '.[parity]'")
F = torch.nn.functional


def last(array):
    """(B, C, H, W) → (B, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, 3))


def first(array):
    """The inverse of `last`."""
    return np.moveaxis(array, 3, 1)


def leaf(array):
    return torch.tensor(array, requires_grad=True)


@needs_onednn
@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("channels, outputs", [(5, 7), (3, 16), (32, 48)])
@pytest.mark.parametrize("half", [False, pytest.param(True, marks=needs_half)])
def test_convolutions_and_their_gradients_equal_torch(size, stride, channels, outputs, half, close):
    """In bf16 those of rounded operands; what leaves as a map is rounded, the kernel's gradient is not."""
    rng = np.random.default_rng(channels)
    shown = rounded if half else np.asarray
    x, w = normal(rng, 2, channels, 9, 6), normal(rng, outputs, channels, size, size)
    theirs = leaf(shown(x)), leaf(shown(w))
    wanted = F.conv2d(*theirs, stride=stride, padding=size // 2)
    g = shown(normal(rng, *wanted.shape))
    wanted.backward(torch.tensor(g))
    ours = jt.array(last(x)), jt.array(w)
    y = cpu_maps.convolution(cpu_maps.narrow(ours[0]) if half else ours[0], ours[1], stride)
    for_x, for_w = jt.grad((cpu_maps.widen(y) * jt.array(last(g))).sum(), list(ours))
    of_maps = "half_relative" if half else "kernel"
    close(first(cpu_maps.widen(y).numpy()), wanted.detach(), of_maps, "trained convolution, relative", relative=True)
    close(first(for_x.numpy()), theirs[0].grad, of_maps, "trained convolution: input's gradient", relative=True)
    close(for_w.numpy(), theirs[1].grad, "kernel", "trained convolution: kernel's gradient, relative", relative=True)


@needs_onednn
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 1, 1, 3), (6, 9, 2, 2), (2, 40, 20, 11)])
@pytest.mark.parametrize("relu, with_residual", [(True, True), (True, False), (False, False), (False, True)])
@pytest.mark.parametrize("given", [True, False])
def test_norms_and_their_gradients_equal_torch(shape, relu, with_residual, given, close):
    rng, C = np.random.default_rng(shape[1]), shape[1]
    x, residual = normal(rng, *shape) + np.float32(30), normal(rng, *shape)
    parameters, g = [normal(rng, C), normal(rng, C)], normal(rng, *shape)
    statistics = [normal(rng, C) + np.float32(30), rng.uniform(0.5, 2, C).astype(np.float32)] if given else [None] * 2
    theirs = [leaf(a) for a in (x, *parameters, residual)]
    running = [None if s is None else torch.tensor(s) for s in statistics]
    wanted = F.batch_norm(theirs[0], *running, *theirs[1:3], training=not given, eps=1e-5)
    wanted = wanted + theirs[3] if with_residual else wanted
    wanted = torch.relu(wanted) if relu else wanted
    wanted.backward(torch.tensor(g))

    ours = [jt.array(last(x)), *map(jt.array, parameters), jt.array(last(residual))]
    known = [None if s is None else jt.array(s).stop_grad() for s in statistics]
    *readings, mean, variance = cpu_maps.norm(*ours[:3], 1e-5, relu, ours[3] if with_residual else None, *known)
    assert len(readings) == cpu_maps.READERS
    close(first(readings[0].numpy()), wanted.detach(), "kernel_offset", "trained norm against torch")
    close(mean.numpy(), statistics[0] if given else x.mean((0, 2, 3)), "kernel_offset")
    close(variance.numpy(), statistics[1] if given else x.var((0, 2, 3)), "kernel_offset")
    asked = ours if with_residual else ours[:3]
    gradients = jt.grad((readings[0] * jt.array(last(g))).sum(), asked)
    for mine, true in zip(gradients, theirs[: len(asked)], strict=True):
        mine = first(mine.numpy()) if mine.ndim == 4 else mine.numpy()
        close(mine, true.grad, "kernel_offset", "trained norm: gradients, relative", relative=True)


@needs_onednn
@pytest.mark.parametrize("read", [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("operator", ["norm", "pool"])
def test_gradients_of_several_readers_add_up(read, operator, close):
    rng = np.random.default_rng(len(read))
    x, g = (
        normal(rng, 2, 4, 6, 5),
        normal(rng, cpu_maps.READERS, 2, 4, 6, 5)[:, :, :2, :3] if operator == "pool" else None,
    )
    g = normal(rng, cpu_maps.READERS, *x.shape) if g is None else g
    var, one = jt.array(x), jt.ones((5,))

    def readings():
        return cpu_maps.pool(var, 2) if operator == "pool" else cpu_maps.norm(var, one, one, 1e-5, True)[:-2]

    def gradient(of):
        made = readings()
        return jt.grad(sum((made[i] * jt.array(np.ascontiguousarray(g[i]))).sum() for i in of), var).numpy()

    close(gradient(read), sum(gradient((i,)) for i in read), "kernel", "gradients of several readers")
    assert np.abs(gradient(read)).max() > 0.01


@needs_onednn
@pytest.mark.parametrize("shape, size", [((2, 3, 8, 6), 2), ((1, 5, 7, 9), 2), ((1, 4, 7, 7), 3)])
def test_pools_and_their_gradients_equal_torch(shape, size, close):
    rng = np.random.default_rng(1)
    theirs = leaf(normal(rng, *shape))
    wanted = F.avg_pool2d(theirs, size)
    g = normal(rng, *wanted.shape)
    wanted.backward(torch.tensor(g))
    x = jt.array(last(theirs.detach().numpy()))
    y = cpu_maps.pool(x, size)[0]
    close(first(y.numpy()), wanted.detach(), "kernel", "trained pool against torch")
    close(first(jt.grad((y * jt.array(last(g))).sum(), x).numpy()), theirs.grad, "kernel", "trained pool: gradient")


@needs_half
def test_half_maps_are_widened_and_narrowed_to_the_nearest():
    x = normal(np.random.default_rng(0), 2, 3, 4, 5)
    var = jt.array(x)
    made = cpu_maps.widen(cpu_maps.narrow(var))
    assert np.array_equal(made.numpy(), rounded(x))
    assert np.array_equal(jt.grad((made * jt.array(x)).sum(), var).numpy(), rounded(x))


@needs_onednn
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_unit_is_the_plain_one(training, seed, close):
    """The running statistics as well, and the gradient of the shortcut."""
    rng = np.random.default_rng(seed)
    layer, x, added, g = conv(5, 7, 3), normal(rng, 3, 5, 6, 4), normal(rng, 3, 7, 6, 4), normal(rng, 3, 7, 6, 4)
    start, found = norm_of(rng, 7).state_dict(), []
    start = {k: v.numpy() for k, v in start.items()}
    for layout in (maps.Plain(), maps.Trained(half=False)):
        norm = norm_of(rng, 7)
        for k, v in norm.state_dict().items():
            v.update(jt.array(start[k]))
        norm.is_train = training
        given = [jt.array(x), jt.array(added)]
        y = layout.leave(layout.convolve(layout.enter(given[0]), layer, norm, True, layout.enter(given[1])))
        wanted = [*given, layer.weight, norm.weight, norm.bias]
        gradients = jt.grad((y * jt.array(g)).sum(), [v.start_grad() for v in wanted])
        found.append([v.numpy() for v in (y, norm.running_mean, norm.running_var, *gradients)])
    for a, b in zip(*found, strict=True):
        close(b, a, "kernel", "a unit of a ResNet in both layouts, relative", relative=True)
    assert np.array_equal(found[1][1], start["running_mean"]) != training


class Waits(jt.Function):
    """What asks for the gradient in the middle of the backward pass, as a batch norm does that waits for other ranks."""

    def execute(self, x):
        return x * 1

    def grad(self, gradient):
        gradient.sync()
        return gradient


def test_a_convolution_between_norms_that_wait_keeps_no_products(close):
    """Its products of all inputs and all weights are a hundred times as large as its input."""
    rng, found = np.random.default_rng(3), []
    kernel, pixels, g = normal(rng, 40, 24, 3, 3), normal(rng, 3, 24, 16, 13), normal(rng, 3, 40, 8, 7)
    products = 4 * 3 * 24 * 40 * 9 * 8 * 7
    for together in (True, False):  # the memory that the latter takes would be there for the other one
        layer, x = conv(24, 40, 3, stride=2), jt.array(pixels).start_grad()
        layer.weight.update(jt.array(kernel))
        y = maps.Plain(together).convolve(Waits()(x), layer, lambda z: z, relu=False)
        loss = (y * jt.array(g)).sum()
        loss.sync()
        jt.gc()
        before = jt.get_mem_info().total_cpu_used
        gradients = jt.grad(loss, [x, layer.weight.start_grad()])
        if together:
            assert jt.get_mem_info().total_cpu_used - before < products / 2
        found.append([v.numpy() for v in (y, *gradients)])
    for a, b in zip(*found, strict=True):
        close(a, b, "kernel", "a convolution whose gradients are computed at once, relative", relative=True)


def test_the_layout_of_maps_follows_what_is_asked_for():
    images, fused = jt.zeros((1, 3, 8, 8)), kernels.chosen() == "cpu"
    trained = maps.Trained if fused else maps.Plain
    assert type(kernels.feature_maps(images, training=False)) is trained
    with jt.no_grad():
        assert type(kernels.feature_maps(images, training=False)) is (maps.ChannelsLast if fused else maps.Plain)
        assert type(kernels.feature_maps(images, training=True)) is trained
    assert type(kernels.feature_maps(images.bfloat16(), training=True)) is maps.Plain


@needs_half
@pytest.mark.parametrize("seed", [0, 1])
def test_a_resnet_trained_in_half_stays_near(seed, close):
    """Loss, gradients' direction and taps; batch norms hold still, as a batch of few small maps amplifies each rounding."""
    config = TOYS["resnet"]
    model = CLIP(config)
    load_strict(model, random_arrays(shapes_of(config), seed), "random")
    params = {k: v for k, v in trainable(model).items() if k.startswith("visual.")}
    training_mode(model, ())
    pixels, _ = toy_batch(config, seed)

    def computed(dtype):
        taps: dict = {}
        with kernels.products_in(dtype):
            features = model.encode_image(pixels, taps=taps)
            loss = (features * features).sum() + sum((t * t).mean() for t in taps.values())
            gradients = [g.numpy().ravel() for g in jt.grad(loss, list(params.values()))]
        return features.numpy(), taps["visual.layer2"].numpy(), np.concatenate(gradients)

    wide, half = computed("fp32"), computed("bf16")
    assert not np.array_equal(wide[0], half[0]) and wide[1].dtype == half[1].dtype == np.float32
    for a, b in zip(wide[:2], half[:2], strict=True):
        close(b, a, "half_tower_relative", "toy resnet trained in bf16, relative", relative=True)
    cosine = wide[2] @ half[2] / np.linalg.norm(wide[2]) / np.linalg.norm(half[2])
    close([1 - cosine], [0.0], "int8_cosine", "toy resnet trained in bf16: gradients, 1 - cosine")


@needs_onednn
def test_a_step_gives_the_same_bits_each_time():
    config = TOYS["resnet"]
    model = CLIP(config)
    load_strict(model, random_arrays(shapes_of(config), 3), "random")
    params = {k: v for k, v in trainable(model).items() if k.startswith("visual.")}
    training_mode(model)
    pixels, _ = toy_batch(config, 3)
    found = []
    for _ in range(2):
        features = model.encode_image(pixels)
        found.append([v.numpy() for v in jt.grad((features * features).sum(), list(params.values()))])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(5, 7), (1,), (3, 1031)])
def test_a_step_of_adamw_by_the_formula(implementation, shape, close):
    rng = np.random.default_rng(shape[0])
    p, m, g = (normal(rng, *shape) for _ in range(3))
    v = np.abs(normal(rng, *shape))
    (b1, b2), keep, step, root, eps = (0.9, 0.98), 0.99, 0.01, 1.7, 1e-6
    with jt.no_grad():
        moved = implementation.adamw(*map(jt.array, (p, m, v, g)), (b1, b2), keep, step, root, eps)
        jt.sync(moved)
    m64, v64 = b1 * m.astype(float) + (1 - b1) * g, b2 * v.astype(float) + (1 - b2) * g.astype(float) ** 2
    wanted = keep * p - step * m64 / (np.sqrt(v64) * root + eps), m64, v64
    for got, true in zip(moved, wanted, strict=True):
        close(got.numpy(), true, "optimiser", "a step of AdamW")


@needs_onednn
def test_adamw_moves_moments_where_they_lie_and_no_parameter():
    p, m, v, g = (jt.array(np.full(3, n, np.float32)) for n in (1.0, 0.0, 0.0, 2.0))
    before = p.detach()
    with jt.no_grad():
        new, same_m, same_v = cpu.adamw(p, m, v, g, (0.5, 0.5), 1.0, 0.1, 1.0, 1e-8)
        new.sync()
    assert same_m is m and same_v is v and m.numpy().tolist() == [1.0] * 3 and v.numpy().tolist() == [2.0] * 3
    assert before.numpy().tolist() == [1.0] * 3
    assert plain.adamw(p, m, v, g, (0.5, 0.5), 1.0, 0.1, 1.0, 1e-8)[1] is not m
