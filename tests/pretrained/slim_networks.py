"""TF-slim's networks written down once more, over made-up variables: what they compute, and their checkpoints.

A network is run by calling it; the variables that it asks for are made then, by name, and are its checkpoint.
"""

import zlib

import numpy as np
import tensorflow as tf


class Variables(dict):
    """{name in the checkpoint: array}; arrays that are not there yet are made of their name and shape."""

    def find(self, name, shape):
        if name not in self:
            self[name] = make_up(name, shape)
        assert self[name].shape == tuple(shape), name
        return self[name]


def make_up(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("gamma", "moving_variance")):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    inputs = shape[:2] if name.endswith("depthwise_weights") else shape[:-1]
    scale = np.sqrt(2 / np.prod(inputs)) if len(shape) > 1 else 0.1
    return (rng.standard_normal(shape, np.float32) * scale).astype(np.float32)


class Scope:
    """slim's layers under a name.

    Args:
      variables: Variables.
      name: what the variables' names begin with.
      epsilon: what batch norms add to variances.
      has_gamma: whether they have a scale.
    """

    def __init__(self, variables, name, epsilon=1e-3, has_gamma=True):
        self.variables, self.name, self.style = variables, name, (epsilon, has_gamma)

    def __truediv__(self, name):
        return Scope(self.variables, f"{self.name}/{name}", *self.style)

    def find(self, name, *shape):
        return self.variables.find(f"{self.name}/{name}", shape)

    def normalise(self, x):
        """A batch norm called as the scope is."""
        epsilon, has_gamma = self.style
        depth = x.shape[-1]
        gamma = self.find("gamma", depth) if has_gamma else 1
        names = ("beta", "moving_mean", "moving_variance")
        beta, mean, variance = (self.find(name, depth) for name in names)
        return (x - mean) * (gamma / np.sqrt(variance + epsilon)) + beta

    def convolve(self, x, filters, kernel, stride=1, padding="SAME"):
        weights = self.find("weights", *_pair(kernel), x.shape[-1], filters)
        return tf.nn.conv2d(x, weights, stride, padding)

    def plain(self, x, filters, kernel=1, **options):
        """With a bias, no batch norm, no activation."""
        return self.convolve(x, filters, kernel, **options) + self.find("biases", filters)

    def block(self, x, filters, kernel=1, activation=tf.nn.relu, **options):
        """Convolution, batch norm, activation."""
        return activation((self / "BatchNorm").normalise(self.convolve(x, filters, kernel, **options)))

    def depthwise(self, x, stride):
        weights = self.find("depthwise_weights", 3, 3, x.shape[-1], 1)
        x = tf.nn.depthwise_conv2d(x, weights, (1, stride, stride, 1), "SAME")
        return tf.nn.relu6((self / "BatchNorm").normalise(x))


def _pair(kernel):
    return kernel if isinstance(kernel, tuple) else (kernel, kernel)


def _pad(x, size):
    return tf.pad(x, ((0, 0), (size, size), (size, size), (0, 0)))


def vgg_16(variables, pixels):
    """Maps of conv4_3 and conv5_3; pixels are RGB less their mean."""
    x, maps = pixels, []
    for block, (filters, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for index in range(1, count + 1):
            x = tf.nn.relu(Scope(variables, f"vgg_16/conv{block}/conv{block}_{index}").plain(x, filters, 3))
        maps.append(x)
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
    return maps[3:]


def resnet(variables, pixels, version, units):
    """The map of the last unit; version 2 behind its norm. The last unit of each stage but the fourth strides."""
    depth = 2 + 3 * sum(units)
    net = Scope(variables, f"resnet_v{version}_{depth}", 1e-5)
    x = _pad(pixels, 3)
    options = {"kernel": 7, "stride": 2, "padding": "VALID"}
    x = (net / "conv1").block(x, 64, **options) if version == 1 else (net / "conv1").plain(x, 64, **options)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    unit = (None, _unit_1, _unit_2)[version]
    for stage, count in enumerate(units, 1):
        for index in range(1, count + 1):
            stride = 2 if index == count and stage < 4 else 1
            scope = net / f"block{stage}" / f"unit_{index}" / f"bottleneck_v{version}"
            x = unit(scope, x, 32 * 2**stage, stride)
    return x if version == 1 else tf.nn.relu((net / "postnorm").normalise(x))


def _unit_1(scope, x, width, stride):
    shortcut = x[:, ::stride, ::stride]
    if x.shape[-1] != 4 * width:
        shortcut = (scope / "shortcut").block(x, 4 * width, stride=stride, activation=tf.identity)
    y = (scope / "conv1").block(x, width)
    y = (scope / "conv2").block(_pad(y, 1), width, 3, stride=stride, padding="VALID")
    return tf.nn.relu(shortcut + (scope / "conv3").block(y, 4 * width, activation=tf.identity))


def _unit_2(scope, x, width, stride):
    before = tf.nn.relu((scope / "preact").normalise(x))
    shortcut = x[:, ::stride, ::stride]
    if x.shape[-1] != 4 * width:
        shortcut = (scope / "shortcut").plain(before, 4 * width, stride=stride)
    y = (scope / "conv1").block(before, width)
    y = (scope / "conv2").block(_pad(y, 1), width, 3, stride=stride, padding="VALID")
    return shortcut + (scope / "conv3").plain(y, 4 * width)


def mobilenet_v1(variables, pixels):
    net = Scope(variables, "MobilenetV1")
    x = (net / "Conv2d_0").block(pixels, 32, 3, tf.nn.relu6, stride=2)
    widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    for index, filters in enumerate(widths, 1):
        x = (net / f"Conv2d_{index}_depthwise").depthwise(x, 2 if index in (2, 4, 6, 12) else 1)
        x = (net / f"Conv2d_{index}_pointwise").block(x, filters, 1, tf.nn.relu6)
    return x


def mobilenet_v2(variables, pixels):
    net = Scope(variables, "MobilenetV2")
    x = (net / "Conv").block(pixels, 32, 3, tf.nn.relu6, stride=2)
    widths = (16, *(24,) * 2, *(32,) * 3, *(64,) * 4, *(96,) * 3, *(160,) * 3, 320)
    for index, filters in enumerate(widths):
        scope = net / (f"expanded_conv_{index}" if index else "expanded_conv")
        y = (scope / "expand").block(x, 6 * x.shape[-1], 1, tf.nn.relu6) if index else x
        y = (scope / "depthwise").depthwise(y, 2 if index in (1, 3, 6, 13) else 1)
        y = (scope / "project").block(y, filters, 1, tf.identity)
        x = x + y if x.shape == y.shape else y
    return (net / "Conv_1").block(x, 1280, 1, tf.nn.relu6)


def _branch(scope, x, *steps):
    """Convolutions in a row, each (name with its kernel, filters, and a stride where it is not padded)."""
    for name, filters, *stride in steps:
        kernel = tuple(int(side) for side in name.rpartition("_")[2].split("x"))
        options = {"stride": stride[0], "padding": "VALID"} if stride else {}
        x = (scope / f"Conv2d_{name}").block(x, filters, kernel, **options)
    return x


def _modules(net, x, names, *branches):
    """Modules of equal branches one after another; a branch may be a pool's name, or start with one."""
    for name in names:
        ends = [
            _inception_branch(net / name / f"Branch_{index}", x, steps) for index, steps in enumerate(branches)
        ]
        x = tf.concat(ends, -1)
    return x


def _inception_branch(scope, x, steps):
    if steps == "max":
        return tf.nn.max_pool2d(x, 3, 2, "VALID")
    if steps[0] == "average":
        return _branch(scope, tf.nn.avg_pool2d(x, 3, 1, "SAME"), *steps[1:])
    if isinstance(steps[-1], list):
        x = _branch(scope, x, *steps[:-1])
        return tf.concat([_branch(scope, x, step) for step in steps[-1]], -1)
    return _branch(scope, x, *steps)


def inception_v4(variables, pixels):
    """Maps of Mixed_5e, Mixed_6h and Mixed_7d; the paper's figures 3 to 9."""
    net = Scope(variables, "InceptionV4", has_gamma=False)
    x = _branch(net, pixels, ("1a_3x3", 32, 2), ("2a_3x3", 32, 1), ("2b_3x3", 64))
    x = _modules(net, x, ["Mixed_3a"], "max", [("0a_3x3", 96, 2)])
    long = [("0a_1x1", 64), ("0b_1x7", 64), ("0c_7x1", 64), ("1a_3x3", 96, 1)]
    x = _modules(net, x, ["Mixed_4a"], [("0a_1x1", 64), ("1a_3x3", 96, 1)], long)
    x = _modules(net, x, ["Mixed_5a"], [("1a_3x3", 192, 2)], "max")
    maps = [
        _modules(
            net,
            x,
            [f"Mixed_5{letter}" for letter in "bcde"],
            [("0a_1x1", 96)],
            [("0a_1x1", 64), ("0b_3x3", 96)],
            [("0a_1x1", 64), ("0b_3x3", 96), ("0c_3x3", 96)],
            ["average", ("0b_1x1", 96)],
        )
    ]
    middle = [("0a_1x1", 192), ("0b_3x3", 224), ("1a_3x3", 256, 2)]
    x = _modules(net, maps[0], ["Mixed_6a"], [("1a_3x3", 384, 2)], middle, "max")
    x = _modules(
        net,
        x,
        [f"Mixed_6{letter}" for letter in "bcdefgh"],
        [("0a_1x1", 384)],
        [("0a_1x1", 192), ("0b_1x7", 224), ("0c_7x1", 256)],
        [("0a_1x1", 192), ("0b_7x1", 192), ("0c_1x7", 224), ("0d_7x1", 224), ("0e_1x7", 256)],
        ["average", ("0b_1x1", 128)],
    )
    maps.append(x)
    long = [("0a_1x1", 256), ("0b_1x7", 256), ("0c_7x1", 320), ("1a_3x3", 320, 2)]
    x = _modules(net, x, ["Mixed_7a"], [("0a_1x1", 192), ("1a_3x3", 192, 2)], long, "max")
    x = _modules(
        net,
        x,
        [f"Mixed_7{letter}" for letter in "bcd"],
        [("0a_1x1", 256)],
        [("0a_1x1", 384), [("0b_1x3", 256), ("0c_3x1", 256)]],
        [("0a_1x1", 384), ("0b_3x1", 448), ("0c_1x3", 512), [("0d_1x3", 256), ("0e_3x1", 256)]],
        ["average", ("0b_1x1", 256)],
    )
    return [*maps, x]


def inception_resnet_v2(variables, pixels):
    """Maps of the last block of 35 cells, the last of 17, and Conv2d_7b; the paper's figures 16 to 19."""
    net = Scope(variables, "InceptionResnetV2", has_gamma=False)
    x = _branch(net, pixels, ("1a_3x3", 32, 2), ("2a_3x3", 32, 1), ("2b_3x3", 64))
    x = _branch(net, tf.nn.max_pool2d(x, 3, 2, "VALID"), ("3b_1x1", 80), ("4a_3x3", 192, 1))
    x = tf.nn.max_pool2d(x, 3, 2, "VALID")
    long = [("0a_1x1", 64), ("0b_3x3", 96), ("0c_3x3", 96)]
    pooled = ["average", ("0b_1x1", 64)]
    x = _modules(net, x, ["Mixed_5b"], [("1x1", 96)], [("0a_1x1", 48), ("0b_5x5", 64)], long, pooled)
    branches = [("1x1", 32)], [("0a_1x1", 32), ("0b_3x3", 32)], [("0a_1x1", 32), ("0b_3x3", 48), ("0c_3x3", 64)]
    for index in range(1, 11):
        x = tf.nn.relu(_residual(net / "Repeat" / f"block35_{index}", x, 0.17, *branches))
    maps = [x]
    middle = [("0a_1x1", 256), ("0b_3x3", 256), ("1a_3x3", 384, 2)]
    x = _modules(net, x, ["Mixed_6a"], [("1a_3x3", 384, 2)], middle, "max")
    for index in range(1, 21):
        branches = [("1x1", 192)], [("0a_1x1", 128), ("0b_1x7", 160), ("0c_7x1", 192)]
        x = tf.nn.relu(_residual(net / "Repeat_1" / f"block17_{index}", x, 0.1, *branches))
    maps.append(x)
    ends = [("0a_1x1", 256), ("1a_3x3", 384, 2)], [("0a_1x1", 256), ("1a_3x3", 288, 2)]
    long = [("0a_1x1", 256), ("0b_3x3", 288), ("1a_3x3", 320, 2)]
    x = _modules(net, x, ["Mixed_7a"], *ends, long, "max")
    branches = [("1x1", 192)], [("0a_1x1", 192), ("0b_1x3", 224), ("0c_3x1", 256)]
    for index in range(1, 10):
        x = tf.nn.relu(_residual(net / "Repeat_2" / f"block8_{index}", x, 0.2, *branches))
    x = _residual(net / "Block8", x, 1.0, *branches)
    return [*maps, _branch(net, x, ("7b_1x1", 1536))]


def _residual(scope, x, scale, *branches):
    ends = [_inception_branch(scope / f"Branch_{index}", x, steps) for index, steps in enumerate(branches)]
    return x + scale * (scope / "Conv2d_1x1").plain(tf.concat(ends, -1), x.shape[-1])
