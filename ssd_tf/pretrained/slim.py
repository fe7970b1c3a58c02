"""TF-slim's checkpoints of ImageNet classifiers, as weights of our backbones.

What differs from slim's networks, none of it in the weights:

* The stride of slim's ResNets V1 lies in the last unit of a stage, that of Keras' in the first unit of the next:
  both leave every second row and column out, and all later maps are equal (layout "seed" has slim's maps).
* Before their first pool Keras' ResNets put a zero on every side, slim's pad an even map at its bottom and right
  alone. Where the first convolution's map is even (150 at 300 pixels), the windows lie one cell apart; else they
  are the same. In version 2, where no ReLU comes before, these zeros count along the edges.
* Keras' ResNets add 1.001e-5 to the variances of their batch norms, slim's 1e-5.
"""

import functools

from ssd_tf.models import inception
from ssd_tf.models.layers import L2_SCALE
from ssd_tf.pretrained import tf_checkpoint
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.source import BackboneSource

_AS_STORED = (0, 1, 2, 3)  # kernels are height, width, input, output; depthwise ones height, width, channel, 1
_REVERSED = {"steps": (1, 1, -1, 1)}  # slim's VGG and ResNet V1 take RGB, ours BGR
_VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)
_RESNET_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_NUM_SEPARABLE, _NUM_INVERTED = 13, 17  # blocks of MobileNet V1 and V2

_CLASSIFIERS = ("fc8", "logits", "Logits", "AuxLogits", "mean_rgb")
_COUNTERS = ("global_step", "beta1_power", "beta2_power")


def is_unused(name):
    """Tells whether a variable has no place in a backbone: the classifier's, the image's mean, and counters."""
    first, _, rest = name.partition("/")
    return first in _COUNTERS or rest.partition("/")[0] in _CLASSIFIERS


def vgg_16_places():
    """Returns {name in slim's vgg_16: Place}, fc6 and fc7 thinned out as models.vgg.decimate does."""
    places = {}
    for block, count in enumerate(_VGG_CONVOLUTIONS, 1):
        for index in range(1, count + 1):
            options = _REVERSED if (block, index) == (1, 1) else {}
            prefix = f"vgg_16/conv{block}/conv{block}_{index}"
            places |= _biased(prefix, f"block{block}_conv{index}", **options)
    for name, steps, whole in (
        ("fc6", (3, 3, 1, 4), (7, 7, 512, 4096)),
        ("fc7", (1, 1, 4, 4), (1, 1, 4096, 4096)),
    ):
        places |= _biased(f"vgg_16/{name}", name, steps=steps, whole=whole)
        places[f"vgg_16/{name}/biases"] = Place(name, "bias", steps=steps[-1:], whole=whole[-1:])
    places["vgg_16/conv4/conv4_3/gamma"] = Place("neck_block4_conv3", "gamma", value=L2_SCALE)
    return places


def resnet_v1_places(depth):
    """Returns {name in slim's ResNet V1 of `depth` layers: Place}; our convolutions have biases, slim's none."""
    network = f"resnet_v1_{depth}"
    convolutions = {f"{network}/conv1": "conv1"}
    for prefix, layer, is_first in _units(network, depth):
        convolutions |= {f"{prefix}/conv{part}": f"{layer}_{part}" for part in (1, 2, 3)}
        if is_first:
            convolutions[f"{prefix}/shortcut"] = f"{layer}_0"
    places = {}
    for prefix, layer in convolutions.items():
        options = _REVERSED if layer == "conv1" else {}
        places |= _kernel(prefix, f"{layer}_conv", **options) | _batch_norm(f"{prefix}/BatchNorm", f"{layer}_bn")
        places[f"{prefix}/biases"] = Place(f"{layer}_conv", "bias", value=0.0)
    return places


def resnet_v2_places(depth):
    """Returns {name in slim's ResNet V2 of `depth` layers: Place}."""
    network = f"resnet_v2_{depth}"
    places = _biased(f"{network}/conv1", "conv1_conv")
    for prefix, layer, is_first in _units(network, depth):
        places |= _batch_norm(f"{prefix}/preact", f"{layer}_preact_bn")
        for part in (1, 2):
            places |= _normalised(f"{prefix}/conv{part}", f"{layer}_{part}_conv", f"{layer}_{part}_bn")
        places |= _biased(f"{prefix}/conv3", f"{layer}_3_conv")
        if is_first:
            places |= _biased(f"{prefix}/shortcut", f"{layer}_0_conv")
    return places | _batch_norm(f"{network}/postnorm", "post_bn")


def mobilenet_v1_places():
    """Returns {name in slim's MobileNet V1 of any width: Place}."""
    places = _normalised("MobilenetV1/Conv2d_0", "conv1", "conv1_bn")
    for index in range(1, _NUM_SEPARABLE + 1):
        for kind, layer in (("depthwise", f"conv_dw_{index}"), ("pointwise", f"conv_pw_{index}")):
            places |= _normalised(f"MobilenetV1/Conv2d_{index}_{kind}", layer, f"{layer}_bn", kind)
    return places


def mobilenet_v2_places():
    """Returns {name in slim's MobileNet V2 of any width: Place}."""
    places = _normalised("MobilenetV2/Conv", "Conv1", "bn_Conv1")
    for index in range(_NUM_INVERTED):
        prefix = f"MobilenetV2/expanded_conv_{index}" if index else "MobilenetV2/expanded_conv"
        layer = f"block_{index}" if index else "expanded_conv"
        for kind in ("expand", "depthwise", "project") if index else ("depthwise", "project"):
            places |= _normalised(f"{prefix}/{kind}", f"{layer}_{kind}", f"{layer}_{kind}_BN", kind)
    return places | _normalised("MobilenetV2/Conv_1", "Conv_1", "Conv_1_bn")


def inception_v4_places():
    """Returns {name in slim's Inception V4: Place}; our batch norms have a scale, slim's none."""
    convolutions = {f"InceptionV4/Conv2d_{name}": f"Conv2d_{name}" for name, *_ in inception.STEM}
    for module, branches in inception.MODULES.items():
        for number, steps in enumerate(branches):
            for name in _convolution_names(steps):
                convolutions[f"InceptionV4/{module}/Branch_{number}/Conv2d_{name}"] = (
                    f"{module}_Branch_{number}_Conv2d_{name}"
                )
    places = {}
    for prefix, layer in convolutions.items():
        places |= _kernel(prefix, layer) | _batch_norm(f"{prefix}/BatchNorm", f"{layer}_bn", has_gamma=False)
        places[f"{prefix}/BatchNorm/gamma"] = Place(f"{layer}_bn", "gamma", value=1.0)
    return places


def inception_resnet_v2_places():
    """Returns {name in slim's Inception-ResNet V2: Place}."""
    convolutions = {f"Conv2d_{name}": f"Conv2d_{name}" for name in inception.RESIDUAL_STEM}
    places = {}
    for module, branches in inception.RESIDUAL_MODULES.items():
        scope = _residual_scope(module)
        for number, names in enumerate(branches):
            for name in names:
                convolutions[f"{scope}/Branch_{number}/Conv2d_{name}"] = f"{module}_Branch_{number}_Conv2d_{name}"
        if module.startswith("block"):
            places |= _biased(f"InceptionResnetV2/{scope}/Conv2d_1x1", f"{module}_conv")
    convolutions["Conv2d_7b_1x1"] = "conv_7b"
    for path, layer in convolutions.items():
        prefix = f"InceptionResnetV2/{path}"
        places |= _kernel(prefix, layer) | _batch_norm(f"{prefix}/BatchNorm", f"{layer}_bn", has_gamma=False)
    return places


def _residual_scope(module):
    """Where slim has a module of Inception-ResNet V2; its last block stands apart from the repeated ones."""
    kind = module.partition("_")[0]
    if module == "block8_10":
        return "Block8"
    repeats = {"block35": "Repeat", "block17": "Repeat_1", "block8": "Repeat_2"}
    return f"{repeats[kind]}/{module}" if kind in repeats else module.capitalize()


def _convolution_names(steps):
    """The convolutions of a branch of inception.MODULES, those side by side at its end too."""
    for step in steps:
        if not isinstance(step, str):
            yield from (name for name, *_ in (step if isinstance(step, list) else [step]))


def _units(network, depth):
    """(slim's scope, start of our layers' names, whether it is the first of its stage) of a ResNet's units."""
    unit = f"bottleneck_{network.split('_')[1]}"
    for stage, count in enumerate(_RESNET_UNITS[depth], 1):
        for index in range(1, count + 1):
            yield f"{network}/block{stage}/unit_{index}/{unit}", f"conv{stage + 1}_block{index}", index == 1


def _kernel(prefix, layer, kind="", **options):
    name = "depthwise_weights" if kind == "depthwise" else "weights"
    return {f"{prefix}/{name}": Place(layer, "kernel", _AS_STORED, **options)}


def _biased(prefix, layer, **options):
    return _kernel(prefix, layer, **options) | {f"{prefix}/biases": Place(layer, "bias")}


def _normalised(prefix, layer, norm, kind=""):
    return _kernel(prefix, layer, kind) | _batch_norm(f"{prefix}/BatchNorm", norm)


def _batch_norm(prefix, layer, has_gamma=True):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {f"{prefix}/{name}": Place(layer, name) for name in names[not has_gamma :]}


# With the moving averages MobileNet V2 reaches its published accuracy; slim evaluates with them.
_open = functools.partial(tf_checkpoint.open_checkpoint, averages=True)


_PLACES = {
    "slim_vgg_16": vgg_16_places,
    **{f"slim_resnet_v1_{depth}": functools.partial(resnet_v1_places, depth) for depth in _RESNET_UNITS},
    **{f"slim_resnet_v2_{depth}": functools.partial(resnet_v2_places, depth) for depth in _RESNET_UNITS},
    "slim_mobilenet_v1": mobilenet_v1_places,
    "slim_mobilenet_v2": mobilenet_v2_places,
    "slim_inception_v4": inception_v4_places,
    "slim_inception_resnet_v2": inception_resnet_v2_places,
}


def _source(name, make_places):
    return BackboneSource(ENTRIES[name], _open, lambda _: make_places(), is_unused)


SOURCES = tuple(_source(name, make_places) for name, make_places in _PLACES.items())
