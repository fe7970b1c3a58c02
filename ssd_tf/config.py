"""Settings: frozen dataclasses, read from a TOML recipe, overridden key by key, written as JSON.

Every leaf has a type, and where it matters a set of choices or a range; an unknown key, a wrong type or
a value out of range is a ConfigError that names the key.
"""

import dataclasses
import difflib
import importlib.resources
import itertools
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from ssd_tf import contradictions, fileio, settings
from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.settings import setting

RECIPE_LIMIT = 1 << 20
DEFAULT_RECIPE = "ssdlite300_mobilenet_v2"
METRICS = ("voc07", "voc", "coco")
GROUPS = ("backbone", "neck", "extras", "heads")
CLOCKS = ("steps", "epochs", "hours")
VALIDATIONS = 10  # of a training whose train.validation_steps is 0
_SIDES, _DEPTHS = (1, 32), (1, 8192)
EXTRA_COLUMNS = {"reduce": _DEPTHS, "channels": _DEPTHS, "kernel": _SIDES, "stride": _SIDES, "padding": (-1, 16)}


@dataclass(frozen=True)
class ModelConfig:
    """The network. `num_classes` 0: as many as the records have. `levels` 0: down to 1x1.

    `backbone` is a registered name, or the name of a keras.applications model; that one needs `taps`: names of
    layers, fine to coarse, or their indices. `taps` replaces those of any other backbone too. `layout` chooses
    among a backbone's sets of taps, `width` multiplies its channels. `remove_stride_at` names layers whose stride
    becomes 1; with `dual_path` the maps behind the taps then come from the image at half that resolution
    (models.strides). `extras_chain` lists the auxiliary layers, fine to coarse, where they depart from the
    backbone's own and from the rule of models.layers.next_extra; the numbers of an entry are those of
    EXTRA_COLUMNS, padding -1 being TensorFlow's "same". `neck_channels` are those of the "fpn" neck and of the
    maps that "shared" heads read.

    Weights that were trained elsewhere need what their networks did: `padding` "symmetric" puts a zero on every
    side where a convolution strides (torch), `activation` replaces that of backbone, auxiliary layers and "lite"
    heads, `norm_epsilon` above 0 that of every batch norm; `tap_norm` normalises VGG's first tap, `reduced_tail`
    halves the last channels of MobileNetV3, `last_head` is the kind of the coarsest level's heads. The first
    `background_columns` of the class heads are together the background.
    """

    backbone: str = "mobilenet_v2"
    layout: str = "default"
    width: float = setting(1.0, low=0.05, high=8.0)
    padding: str = setting("same", choices=("same", "symmetric"))
    activation: str = setting("auto", choices=("auto", "relu", "relu6"))
    norm_epsilon: float = setting(0.0, low=0.0, high=1.0)
    tap_norm: str = setting("l2", choices=("l2", "bn"))
    reduced_tail: bool = False
    taps: tuple[str, ...] = ()
    remove_stride_at: tuple[str, ...] = ()
    dual_path: bool = False
    image_size: tuple[int, int] = setting((300, 300), low=32, high=4096)
    num_classes: int = setting(0, low=0, high=100_000)
    weights: str = "imagenet"
    neck: str = setting("none", choices=("none", "fpn"))
    neck_channels: int = setting(128, low=1, high=8192)
    heads: str = setting("conv", choices=("conv", "conv1x1", "lite", "shared"))
    last_head: str = setting("same", choices=("same", "conv", "conv1x1", "lite"))
    background_columns: int = setting(1, low=1, high=2_000)
    extras: str = setting("conv", choices=("conv", "separable", "inverted"))
    extras_norm: str = setting("none", choices=("none", "bn"))
    extras_chain: tuple[tuple[int, ...], ...] = setting((), columns=EXTRA_COLUMNS)
    levels: int = setting(0, low=0, high=12)
    preprocessing: str = setting("auto", choices=("auto", "caffe", "tf", "torch", "none", "custom"))
    input_mean: tuple[float, ...] = ()
    input_scale: float = 1.0


@dataclass(frozen=True)
class AnchorConfig:
    """Anchors. `preset` "auto" or "auto_coco" follows the number of levels; the other keys replace its parts.

    `sizes` holds one more entry than levels, as fractions of the shorter image side.
    """

    preset: str = "auto"
    sizes: tuple[float, ...] = setting((), low=1e-4, high=4.0)
    ratios: tuple[tuple[float, ...], ...] = setting((), low=0.01, high=100.0)
    steps: tuple[float, ...] = setting((), low=1e-3)
    offset: float = setting(0.5, low=0.0, high=1.0)
    clip: str = setting("preset", choices=("preset", "none", "corners", "size", "centre_size"))


@dataclass(frozen=True)
class MatcherConfig:
    """Which anchors learn which box (SSD paper, section 2.2)."""

    iou_threshold: float = setting(0.5, low=0.0, high=1.0)
    forced: str = setting("argmax", choices=("argmax", "greedy"))


@dataclass(frozen=True)
class LossConfig:
    """MultiBox loss (SSD paper, section 2.2), or what later papers put in its place.

    `classification` "softmax" and "sigmoid" mine the hardest negatives (`negative_ratio`, `min_negatives`);
    "focal" (arXiv 1708.02002) weighs all anchors by `focal_alpha` and `focal_gamma` and starts from the
    probability `focal_prior`. Scores are softmax over background and classes, or one sigmoid a class.
    `class_weights`, one a class in the order of the label map, multiply the classification loss of the anchors
    matched to that class. An image without objects teaches what background is where `min_negatives` is above 0,
    or with "focal".
    """

    classification: str = setting("softmax", choices=("softmax", "sigmoid", "focal"))
    focal_alpha: float = setting(0.25, low=0.0, high=1.0)
    focal_gamma: float = setting(2.0, low=0.0, high=10.0)
    focal_prior: float = setting(0.01, low=1e-6, high=0.5)
    label_smoothing: float = setting(0.0, low=0.0, high=0.5)
    box: str = setting("smooth_l1", choices=("smooth_l1", "giou", "diou", "ciou"))
    negative_ratio: float = setting(3.0, low=0.0, high=1000.0)
    min_negatives: int = setting(0, low=0, high=100_000)
    box_weight: float = setting(1.0, low=0.0, high=1000.0)
    class_weights: tuple[float, ...] = setting((), low=0.0, high=1000.0)

    @property
    def has_background(self):
        """Whether column 0 of the class logits is background: with softmax alone."""
        return self.classification == "softmax"


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the SSD paper; a probability or width of 0 switches a part off.

    brightness in grey levels, contrast and saturation as a +- fraction, hue in degrees. `rotate_probability`: of
    a quarter turn, to either side. With `jitter_probability` an image is scaled by a factor out of
    `jitter_scale`, its shape kept, instead of being expanded and cropped (large-scale jitter, arXiv 2012.07177).
    `mosaic_probability`: of four images around one point (arXiv 2004.10934); `mixup_probability`: of two blended
    by Beta(`mixup_alpha`, `mixup_alpha`), with the boxes of both (arXiv 1902.04103, 2107.08430). In the last
    `plain_last` of the steps there are neither.
    """

    brightness: float = setting(32.0, low=0.0, high=255.0)
    contrast: float = setting(0.5, low=0.0, high=1.0)
    saturation: float = setting(0.5, low=0.0, high=1.0)
    hue: float = setting(36.0, low=0.0, high=180.0)
    color_probability: float = setting(0.5, low=0.0, high=1.0)
    expand_probability: float = setting(0.5, low=0.0, high=1.0)
    expand_max: float = setting(4.0, low=1.0, high=16.0)
    crop_probability: float = setting(1.0, low=0.0, high=1.0)
    crop_min_iou: tuple[float, ...] = setting((0.1, 0.3, 0.5, 0.7, 0.9), low=0.0, high=1.0)
    crop_min_scale: float = setting(0.3, low=0.01, high=1.0)
    crop_trials: int = setting(50, low=1, high=1000)
    flip_probability: float = setting(0.5, low=0.0, high=1.0)
    vertical_flip_probability: float = setting(0.0, low=0.0, high=1.0)
    rotate_probability: float = setting(0.0, low=0.0, high=1.0)
    jitter_probability: float = setting(0.0, low=0.0, high=1.0)
    jitter_scale: tuple[float, float] = setting((0.1, 2.0), low=0.01, high=16.0)
    mosaic_probability: float = setting(0.0, low=0.0, high=1.0)
    mixup_probability: float = setting(0.0, low=0.0, high=1.0)
    mixup_alpha: float = setting(32.0, low=0.01, high=1000.0)
    plain_last: float = setting(0.1, low=0.0, high=1.0)


@dataclass(frozen=True)
class DataConfig:
    """The input pipeline. `shuffle_buffer` counts serialized records.

    `balance` evens out how often classes are seen: "downsample" leaves out images of the frequent ones, others in
    each epoch, until each class is in about as many images as the rarest; "repeat" shows more often the images of
    a class that is in less than the share `repeat_threshold` of all (repeat-factor sampling, arXiv 1908.03195).
    """

    resize: str = setting("bilinear", choices=("bilinear", "bilinear_tf1"))
    shuffle_buffer: int = setting(2048, low=1, high=10_000_000)
    use_difficult: bool = False
    balance: str = setting("none", choices=("none", "downsample", "repeat"))
    repeat_threshold: float = setting(0.1, low=0.0, high=1.0)


@dataclass(frozen=True)
class TrainConfig:
    """The training clock is `steps`, each of one batch; `epochs` is turned into steps once the data are known,
    `hours` once the first steps have been timed.

    `warmup` and `milestones` are fractions of the steps. `final_rate` is what "cosine", "exponential" and
    "polynomial" (of `power`) end at, as a fraction of learning_rate, which `backbone_rate`, `neck_rate`,
    `extras_rate` and `heads_rate` multiply for their layers. `momentum` is beta_1 of Adam, `square_momentum` its
    beta_2 and RMSprop's rho (0: Keras' value). Weight decay is L2 / 2 on kernels through the loss, decoupled with
    "adamw". `accumulate` steps make one update. `ema` above 0 keeps a moving average of the weights of that
    momentum (less at the start), which is what a checkpoint then shows to test and demo.

    `freeze` names groups of layers that do not learn; `freeze_to` freezes a layer and all that it depends on: a
    name, or where Keras makes names up the index in the backbone. `freeze_batch_norm` is about the backbone's.
    `validation_steps` 0: ten times a training. `early_stopping` ends it after so many validations in a row without
    a better one. `devices` 0: all there are.
    """

    batch_size: int = setting(32, low=1, high=100_000)
    steps: int = setting(0, low=0, resumable=True)
    epochs: float = setting(0.0, low=0.0)
    hours: float = setting(0.0, low=0.0, high=10_000.0)
    seed: int = setting(0, low=0, high=2**31 - 1)
    precision: str = setting("float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    optimizer: str = setting("sgd", choices=("sgd", "adam", "adamw", "rmsprop"))
    learning_rate: float = setting(0.001, low=0.0, high=100.0)
    backbone_rate: float = setting(1.0, low=1e-6, high=1000.0)
    neck_rate: float = setting(1.0, low=1e-6, high=1000.0)
    extras_rate: float = setting(1.0, low=1e-6, high=1000.0)
    heads_rate: float = setting(1.0, low=1e-6, high=1000.0)
    schedule: str = setting("cosine", choices=("cosine", "multistep", "exponential", "polynomial", "constant"))
    warmup: float = setting(0.05, low=0.0, high=1.0)
    milestones: tuple[float, ...] = setting((2 / 3, 5 / 6), low=0.0, high=1.0)
    final_rate: float = setting(0.0, low=0.0, high=1.0)
    power: float = setting(1.0, low=0.01, high=100.0)
    momentum: float = setting(0.9, low=0.0, high=1.0)
    square_momentum: float = setting(0.0, low=0.0, high=1.0)
    epsilon: float = setting(1e-7, low=1e-12, high=10.0)
    weight_decay: float = setting(5e-4, low=0.0, high=1.0)
    clip_norm: float = setting(10.0, low=0.0)
    accumulate: int = setting(1, low=1, high=10_000)
    ema: float = setting(0.0, low=0.0, high=0.999999)
    freeze: tuple[str, ...] = setting((), choices=GROUPS)
    freeze_to: str = ""
    freeze_batch_norm: bool = True
    batch_norm_momentum: float = setting(0.97, low=0.0, high=1.0)
    jit_compile: bool = False
    checkpoint_steps: int = setting(500, low=1, resumable=True)
    keep_last: int = setting(2, low=1, high=1000, resumable=True)
    validation_steps: int = setting(0, low=0, resumable=True)
    validation_metric: str = setting("voc07", choices=METRICS, resumable=True)
    early_stopping: int = setting(0, low=0, high=10_000, resumable=True)
    log_steps: int = setting(20, low=1, resumable=True)
    devices: int = setting(0, low=0, high=1024, resumable=True)


@dataclass(frozen=True)
class PostprocessConfig:
    """From scores and boxes to detections (SSD paper, section 3; torchvision's names and values).

    `nms` "hard" drops what overlaps a better box by more than `nms_iou`, "diou" measures the overlap by DIoU
    (arXiv 1911.08287), "soft_gaussian" (with `soft_nms_sigma`) and "soft_linear" lower scores (1704.04503).
    `class_agnostic` lets boxes of different classes suppress each other. Boxes are cut to the image before
    suppression, or as the TF Object Detection API does ("after").
    """

    nms: str = setting("hard", choices=("hard", "diou", "soft_gaussian", "soft_linear"), resumable=True)
    soft_nms_sigma: float = setting(0.5, low=1e-3, high=100.0, resumable=True)
    class_agnostic: bool = setting(False, resumable=True)
    clip: str = setting("before", choices=("before", "after"), resumable=True)
    score_threshold: float = setting(0.01, low=0.0, high=1.0, resumable=True)
    nms_iou: float = setting(0.45, low=0.0, high=1.0, resumable=True)
    topk_candidates: int = setting(400, low=1, high=100_000, resumable=True)
    max_detections: int = setting(200, low=1, high=100_000, resumable=True)


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes, but for the data."""

    model: ModelConfig = field(default_factory=ModelConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self):
        contradictions.check(self, GROUPS)


def load_config(recipe=None, overrides=()):
    """Reads a recipe and applies overrides.

    Args:
      recipe: name of a recipe of the package, path of a TOML file, or None for all defaults.
      overrides: "section.key=value" texts; the value is parsed by the key's type.

    Returns:
      Config.

    Raises:
      ConfigError: unknown recipe or key, wrong type, value out of range; the message names the key.
    """
    values = _read_recipe(recipe) if recipe else {}
    _check_leaves(values, recipe)
    _check_clocks(values.get("train", {}), f"{shown(recipe)}: ")
    return _changed(values, overrides, recipe or "config")


def check_overrides(overrides):
    """Raises ConfigError for an unknown key, a wrong type or a value out of range; names the key."""
    for override in overrides:
        key, value = _parse_override(override)
        settings.check(key, _leaves()[key], value)


def adapt(config, overrides):
    """Returns the Config of a new training that takes over another one's settings, but not its classes.

    Args:
      config: Config of the other.
      overrides: "section.key=value" texts.

    Raises:
      ConfigError: unknown key, wrong type, value out of range; names the key.
    """
    values = to_dict(config)
    values["model"].update(num_classes=0, background_columns=1, weights="none")
    return _changed(values, overrides, "config")


def _changed(values, overrides, where):
    """The Config of nested dictionaries with overrides applied."""
    if isinstance(overrides, (str, dict)):
        raise ConfigError('overrides are a list of "section.key=value" texts')
    changed = {}
    for override in overrides:
        key, value = _parse_override(override)
        changed[key] = value
    _check_clocks([key.removeprefix("train.") for key in changed])
    for key, value in changed.items():
        section, name = key.split(".")
        for other in CLOCKS if name in CLOCKS and section == "train" else ():
            values.get("train", {}).pop(other, None)
        values.setdefault(section, {})[name] = value
    return _build(values) if changed else from_dict(values, where)


def _check_clocks(names, where=""):
    given = [f"train.{clock}" for clock in CLOCKS if clock in names]
    if len(given) > 1:
        raise ConfigError(f"{where}{' and '.join(given)} exclude each other")


def _recipe_folder():
    """Where the recipes lie: in the installed package, or beside it where a checkout is used as it stands."""
    try:
        return importlib.resources.files("ssd_tf.recipes")
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / "configs"


def list_recipes():
    """Returns the names of the recipes that come with the package, sorted."""
    files = _recipe_folder().iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def describe_recipes():
    """Returns a list of dicts, one a recipe of the package: name and summary."""
    return [{"name": name, "summary": _describe_recipe(name)} for name in list_recipes()]


def _describe_recipe(name):
    """One line on a recipe: its header up to the first full stop, colon or bracket."""
    text = (_recipe_folder() / f"{name}.toml").read_text("utf-8")
    header = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    return re.split(r"[.:;] | \(", " ".join(line[2:] for line in header) + " ")[0]


def _read_recipe(recipe):
    path = Path(recipe)
    if path.suffix == ".toml":
        try:
            text = fileio.read_text(path, RECIPE_LIMIT)
        except DataError as error:
            raise ConfigError(str(error)) from None
    else:
        names = list_recipes()
        if str(recipe) not in names:
            raise ConfigError(
                f"unknown recipe {shown(recipe)!r}{suggest(recipe, names)}; there are: {', '.join(names)}"
            )
        text = (_recipe_folder() / f"{recipe}.toml").read_text("utf-8")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or a number of thousands of digits
        raise ConfigError(f"{shown(recipe)}: {str(error).splitlines()[0]}") from None


def from_dict(values, where):
    """Builds a Config from nested dictionaries; `where` names their origin in errors."""
    _check_leaves(values, where)
    try:
        return _build(values)
    except ConfigError as error:  # leaves that contradict each other
        raise ConfigError(f"{shown(where)}: {error}") from None


def _check_leaves(values, where):
    """Raises ConfigError for a wrong section, key or value; names the file that it stands in."""
    _check_sections(values, where)
    try:
        for section, leaves in values.items():
            _build_section(section, dict, leaves)
    except ConfigError as error:
        raise ConfigError(f"{shown(where)}: {error}") from None


def _build(values):
    kinds = {item.name: item.type for item in dataclasses.fields(Config)}
    return Config(
        **{section: _build_section(section, kinds[section], leaves) for section, leaves in values.items()}
    )


def _check_sections(values, where):
    if not isinstance(values, dict):
        raise ConfigError(f"{shown(where)}: expected a table of sections")
    sections = [item.name for item in dataclasses.fields(Config)]
    for section, leaves in values.items():
        if section not in sections:
            name = shown(section)[: settings.SHOWN_LENGTH]
            raise ConfigError(f"{shown(where)}: unknown key {name}{suggest(section, sections)}")
        if not isinstance(leaves, dict):
            raise ConfigError(f"{shown(where)}: {section} is a table of keys, not a value")


def to_dict(config):
    """Returns the nested dictionaries of a Config, ready for JSON; `from_dict` is the inverse."""
    return dataclasses.asdict(config)


def replace(config, **leaves):
    """Returns a copy of `config` with leaves replaced, given as section__key=value."""
    changes = {}
    for path, value in leaves.items():
        section, key = path.split("__")
        changes.setdefault(section, {})[key] = value
    parts = {
        section: dataclasses.replace(getattr(config, section), **values) for section, values in changes.items()
    }
    return dataclasses.replace(config, **parts)


def override(config, overrides, section):
    """Returns a copy of a finished Config with some leaves of one section changed.

    Args:
      config: Config.
      overrides: "section.key=value" texts.
      section: the section that may change.

    Raises:
      ConfigError: another section, unknown key, wrong type or value; names the key.
    """
    changes = {}
    for text in overrides:
        key, value = _parse_override(text)
        if not key.startswith(f"{section}."):
            raise ConfigError(f"--set {key}: of a finished run only {section}. keys can be changed")
        changes[key.replace(".", "__")] = settings.check(key, _leaves()[key], value)
    return replace(config, **changes)


def resolve_steps(config, num_examples, steps=None):
    """Returns `config` with train.steps set, train.epochs and train.hours spent.

    Args:
      config: Config with one of the three clocks.
      num_examples: images in the training set.
      steps: how many train.hours have come to, or None.

    Raises:
      ConfigError: there is no clock, or it is train.hours and `steps` is not known.
    """
    train = config.train
    steps = steps or train.steps or math.ceil(train.epochs * num_examples / train.batch_size)
    if steps < 1 and train.hours:
        raise ConfigError("train.hours become steps in a training alone: set train.steps or train.epochs here")
    if steps < 1:
        raise ConfigError("set train.steps, train.epochs or train.hours (for example --set train.epochs=20)")
    return replace(config, train__steps=steps, train__epochs=0.0, train__hours=0.0)


def check_resume(old, new):
    """Raises ConfigError if `new` changes what a started run may not change; names the key."""
    for key, item in _leaves().items():
        section, name = key.split(".")
        before, after = getattr(getattr(old, section), name), getattr(getattr(new, section), name)
        if before != after and not item.metadata.get("resumable"):
            change = f"{key} {_text(before)} → {_text(after)}"
            raise ConfigError(f"cannot resume: {change} (start a new run_dir, or --init_from)")


def _text(value):
    return str(value) if value != "" else "''"


def _leaves():
    """All settings as {"section.key": dataclass field}."""
    return {
        f"{section.name}.{item.name}": item
        for section in dataclasses.fields(Config)
        for item in dataclasses.fields(section.type)
    }


def _unknown_key(key, known):
    name = key.split(".")[-1]
    names = [other.split(".")[1] for other in known]
    near = "" if name in names else suggest(key, known)
    if not near:  # the right key name in the wrong section
        same = difflib.get_close_matches(name, names, 1)
        near = next((f" (did you mean {other}?)" for other in known if same and other.endswith("." + same[0])), "")
    return ConfigError(f"unknown key {shown(key)[: settings.SHOWN_LENGTH]}{near}")


def _build_section(section, kind, leaves):
    known = _leaves()
    values = {}
    for name, value in leaves.items():
        key = f"{section}.{name}"
        if key not in known:
            raise _unknown_key(key, known)
        values[name] = settings.check(key, known[key], value)
    return kind(**values)


def _parse_override(text):
    key, equals, raw = text.partition("=")
    key, known = key.strip(), _leaves()
    if not equals:
        raise ConfigError(f"--set wants section.key=value, got {text!r}")
    if key not in known:
        raise _unknown_key(key, known)
    return key, settings.parse(key, known[key].type, raw.strip())
