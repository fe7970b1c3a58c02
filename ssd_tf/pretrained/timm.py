"""Names of timm's weights, and the layers of ours that they belong to."""

from ssd_tf.models import inception
from ssd_tf.pretrained import torch_layout


def is_unused(name):
    """Tells whether an array of timm's has no place in a backbone: the classifier's, and torch's counters."""
    return name.startswith("last_linear.") or torch_layout.is_counter(name)


def inception_v4_places():
    """Returns {name in timm's inception_v4: Place}, the classifier's left out."""
    layers = {f"features.{index}": f"Conv2d_{name}" for index, (name, *_) in enumerate(inception.STEM)}
    for index, (module, branches) in enumerate(inception.MODULES.items(), len(inception.STEM)):
        for number, steps in enumerate(branches):
            for part, name in _parts(number, steps):
                # A pool beside a lone convolution: that one stands for the whole module.
                part = "conv" if module in ("Mixed_3a", "Mixed_5a") else part
                layers[f"features.{index}.{part}"] = f"{module}_Branch_{number}_Conv2d_{name}"
    blocks = (torch_layout.normalized(f"{prefix}.conv", f"{prefix}.bn", layer) for prefix, layer in layers.items())
    return {name: place for block in blocks for name, place in block.items()}


def _parts(number, steps):
    """(timm's name, name in inception.MODULES) of the convolutions of a branch."""
    if isinstance(steps[-1], list):
        *line, pair = steps
        yield from ((f"branch{number}_{index}", name) for index, (name, *_) in enumerate(line))
        yield from (
            (f"branch{number}_{len(line)}{side}", name) for side, (name, *_) in zip("ab", pair, strict=True)
        )
    else:
        for index, step in enumerate(steps):
            if not isinstance(step, str):
                yield f"branch{number}.{index}" if len(steps) > 1 else f"branch{number}", step[0]
