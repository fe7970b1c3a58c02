"""Settings: every leaf from TOML and from --set, what is refused and how, dump and load, resume."""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssd_tf import config as configs
from ssd_tf.errors import ConfigError
from ssd_tf.settings import check

LEAVES = {
    f"{section.name}.{leaf.name}": leaf
    for section in dataclasses.fields(configs.Config)
    for leaf in dataclasses.fields(section.type)
}


def read(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def refused(*overrides, recipe=None):
    with pytest.raises(ConfigError) as caught:
        configs.load_config(recipe, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_recipe(folder, text):
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# One sample of each type of leaf: (key, TOML value, --set text, the value in the Config).
SAMPLES = [
    ("model.backbone", '"vgg16"', "vgg16", "vgg16"),
    ("model.num_classes", "7", "7", 7),
    ("model.image_size", "512", "512", (512, 512)),
    ("model.image_size", "[300, 400]", "300,400", (300, 400)),
    ("model.image_size", "[300, 400]", "[300, 400]", (300, 400)),
    ("model.input_mean", "[123, 117.5, 104]", "123,117.5,104", (123.0, 117.5, 104.0)),
    ("anchors.ratios", "[[1, 2], [1, 2, 0.5]]", "[[1, 2], [1, 2, 0.5]]", ((1.0, 2.0), (1.0, 2.0, 0.5))),
    ("anchors.sizes", "[0.1, 0.2]", "0.1, 0.2", (0.1, 0.2)),
    (
        "model.extras_chain",
        "[\n[256, 512, 3, 2, 1],\n[128, 256, 4, 1, 0],\n]",
        "[[256, 512, 3, 2, 1], [128, 256, 4, 1, 0]]",
        ((256, 512, 3, 2, 1), (128, 256, 4, 1, 0)),
    ),
    ("augment.crop_trials", "5", "5", 5),
    ("train.learning_rate", "1", "1", 1.0),
    ("train.learning_rate", "1e-3", "1e-3", 0.001),
    ("train.freeze_batch_norm", "false", "false", False),
    ("train.freeze_batch_norm", "false", "False", False),
    ("train.jit_compile", "true", "TRUE", True),
    ("train.schedule", '"multistep"', "multistep", "multistep"),
    ("train.milestones", "[]", "[]", ()),
    ("train.freeze", '["backbone", "neck"]', "backbone, neck", ("backbone", "neck")),
    ("train.freeze_to", '"12"', "12", "12"),
    ("train.hours", "2", "2", 2.0),
    ("augment.jitter_scale", "[0.5, 1.5]", "0.5,1.5", (0.5, 1.5)),
    ("postprocess.score_threshold", "0.25", "0.25", 0.25),
]


@pytest.mark.parametrize(("key", "toml", "text", "expected"), SAMPLES)
def test_leaf_from_recipe_and_from_override(tmp_path, key, toml, text, expected):
    section, name = key.split(".")
    path = write_recipe(tmp_path, f"[{section}]\n{name} = {toml}\n")
    for config in (configs.load_config(path), configs.load_config(None, [f"{key}={text}"])):
        value = read(config, key)
        assert value == expected
        assert type(value) is type(expected)
        assert configs.replace(config, **{f"{section}__{name}": read(configs.Config(), key)}) == configs.Config()


def test_override_spaces_and_equals_signs():
    config = configs.load_config(None, [" train.batch_size = 8 ", "model.weights=/data/a=b.h5"])
    assert config.train.batch_size == 8
    assert config.model.weights == "/data/a=b.h5"


def test_later_override_of_one_key_counts():
    assert configs.load_config(None, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_override_stands_above_the_recipe():
    config = configs.load_config("ssd300_vgg16_voc", ["train.batch_size=8"])
    assert (config.model.backbone, config.train.batch_size, config.train.steps) == ("vgg16", 8, 120_000)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batchsize=8", "unknown key train.batchsize (did you mean train.batch_size?)"),
        ("trian.batch_size=8", "unknown key trian.batch_size (did you mean train.batch_size?)"),
        ("model.batch_size=8", "unknown key model.batch_size (did you mean train.batch_size?)"),
        ("batch_size=8", "unknown key batch_size (did you mean train.batch_size?)"),
        ("train.learning_rte=1", "unknown key train.learning_rte (did you mean train.learning_rate?)"),
        ("xyzzy.qqq=1", "unknown key xyzzy.qqq"),
        ("train.batch_size", "--set wants section.key=value, got 'train.batch_size'"),
        ("train.batch_size=8.0", "train.batch_size: expected integer, got 8.0"),
        ("train.batch_size=true", "train.batch_size: expected integer, got True"),
        ("train.batch_size=eight", "train.batch_size: expected integer, got 'eight'"),
        ("train.batch_size=", "train.batch_size: expected integer, got ''"),
        ("train.batch_size=8\ntrain.seed=1", "train.batch_size: expected integer, got '8\\ntrain.seed=1'"),
        ("train.jit_compile=yes", "train.jit_compile: expected true or false, got 'yes'"),
        ("train.jit_compile=1", "train.jit_compile: expected true or false, got '1'"),
        ("train.learning_rate=nan", "train.learning_rate: expected number, got nan"),
        ("train.learning_rate=inf", "train.learning_rate: expected number, got inf"),
        ("train.learning_rate='0.1'", "train.learning_rate: expected number, got '0.1'"),
        ("train.batch_size=0", "train.batch_size: 0 is outside 1..100000"),
        ("train.steps=-1", "train.steps: -1 is outside 0.."),
        ("model.image_size=16", "model.image_size: 16 is outside 32..4096"),
        ("model.image_size=300,9999", "model.image_size: 9999 is outside 32..4096"),
        ("model.image_size=1,2,3", "model.image_size: expected a list of integers, got [1, 2, 3]"),
        ("model.image_size=300.5", "model.image_size: expected a list of integers, got 300.5"),
        ("anchors.sizes=0.5", "anchors.sizes: expected a list of numbers, got 0.5"),
        ("anchors.ratios=[1, 2]", "anchors.ratios: expected a list of numbers, got 1"),
        ("anchors.ratios=1", "anchors.ratios: expected a list of lists of numbers, got 1"),
        ("matcher.iou_threshold=1.5", "matcher.iou_threshold: 1.5 is outside 0.0..1.0"),
        (
            "train.schedule=cosin",
            "train.schedule: 'cosin' is none of cosine, multistep, exponential, polynomial, constant "
            "(did you mean cosine?)",
        ),
        (
            "train.optimizer=adm",
            "train.optimizer: 'adm' is none of sgd, adam, adamw, rmsprop (did you mean adam?)",
        ),
        (
            "train.freeze=backbone,head",
            "train.freeze: 'head' is none of backbone, neck, extras, heads (did you mean heads?)",
        ),
        ("train.backbone_rate=0", "train.backbone_rate: 0.0 is outside 1e-06..1000.0"),
        ("train.ema=1", "train.ema: 1.0 is outside 0.0..0.999999"),
        ("train.accumulate=0", "train.accumulate: 0 is outside 1..10000"),
        ("train.hours=-1", "train.hours: -1.0 is outside 0.0..10000.0"),
        (
            "model.padding=symetric",
            "model.padding: 'symetric' is none of same, symmetric (did you mean symmetric?)",
        ),
        ("model.background_columns=0", "model.background_columns: 0 is outside 1..2000"),
        ("model.background_columns=2001", "model.background_columns: 2001 is outside 1..2000"),
        ("model.norm_epsilon=-1e-3", "model.norm_epsilon: -0.001 is outside 0.0..1.0"),
        ("model.last_head=shard", "model.last_head: 'shard' is none of same, conv, conv1x1, lite"),
        ("matcher.forced=x", "matcher.forced: 'x' is none of argmax, greedy"),
        ("train.milestones=0.5,0.5", "train.milestones must increase"),
        ("train.milestones=0.8,0.6", "train.milestones must increase"),
        ("train.milestones=0.5,1.5", "train.milestones: 1.5 is outside 0.0..1.0"),
        (
            "model.preprocessing=custom",
            "model.preprocessing=custom needs model.input_mean, three numbers (R, G, B)",
        ),
    ],
)
def test_wrong_override_is_one_line_that_names_the_key(override, message):
    assert refused(override) == message


ROW = "expected [reduce, channels, kernel, stride, padding], got"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[[256, 512, 3, 2]]", f"entry 1: {ROW} [256, 512, 3, 2]"),
        ("[[8, 8, 3, 2, 1], [8, 8, 3, 2, 1, 1]]", f"entry 2: {ROW} [8, 8, 3, 2, 1, 1]"),
        ("[[]]", f"entry 1: {ROW} []"),
        ("[[0, 8, 3, 2, 1]]", "entry 1: reduce 0 is outside 1..8192"),
        ("[[8, 8193, 3, 2, 1]]", "entry 1: channels 8193 is outside 1..8192"),
        ("[[8, 8, 33, 2, 1]]", "entry 1: kernel 33 is outside 1..32"),
        ("[[8, 8, 3, 2, 1], [8, 8, 3, 0, 1]]", "entry 2: stride 0 is outside 1..32"),
        ("[[8, 8, 3, 2, -2]]", "entry 1: padding -2 is outside -1..16"),
        ("[8, 8, 3, 2, 1]", "expected a list of integers, got 8"),
        ("[[8, 8, 3.0, 2, 1]]", "expected integer, got 3.0"),
        ("8", "expected a list of lists of integers, got 8"),
        ("conv", "expected a list of lists of integers, got 'conv'"),
    ],
)
def test_wrong_chain_of_extras_is_one_line_that_names_the_entry(tmp_path, value, message):
    assert refused(f"model.extras_chain={value}") == f"model.extras_chain: {message}"
    if value != "conv":
        recipe = write_recipe(tmp_path, f"[model]\nextras_chain = {value}\n")
        assert refused(recipe=recipe) == f"{recipe}: model.extras_chain: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nbatchsize = 8\n", "mine.toml: unknown key train.batchsize (did you mean train.batch_size?)"),
        ("[trian]\nseed = 8\n", "mine.toml: unknown key trian (did you mean train?)"),
        ("train = 3\n", "mine.toml: train is a table of keys, not a value"),
        ("seed = 3\n", "mine.toml: unknown key seed"),
        ('[train]\nbatch_size = "8"\n', "mine.toml: train.batch_size: expected integer, got '8'"),
        ("[train]\nseed = 2024-01-01\n", "mine.toml: train.seed: expected integer, got datetime.date(2024, 1, 1)"),
        ("[model]\nbackbone = 3\n", "mine.toml: model.backbone: expected text, got 3"),
        ("[train]\njit_compile = 1\n", "mine.toml: train.jit_compile: expected true or false, got 1"),
        ("[train]\nseed = {a = 1}\n", "mine.toml: train.seed: expected integer, got {'a': 1}"),
        ("[train\nseed = 1", "mine.toml: Expected ']' at the end of a table declaration (at line 1, column 7)"),
        ("[train]\nseed = 1\nseed = 2\n", "mine.toml: Cannot overwrite a value (at line 3, column 9)"),
        ("[train]\nsteps = 1\nepochs = 2.0\n", "mine.toml: train.steps and train.epochs exclude each other"),
    ],
)
def test_wrong_recipe_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, text)
    assert refused(recipe="mine.toml") == message


def test_recipe_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(recipe="mine.toml") == "no such file: mine.toml"
    (tmp_path / "mine.toml").write_bytes(b"# \xe9\n")
    assert refused(recipe="mine.toml") == "mine.toml is not UTF-8 (byte 0xE9 at 2)"
    (tmp_path / "mine.toml").write_bytes(b"#" * (2 << 20))
    assert refused(recipe="mine.toml") == "refused: larger than 1 MiB: mine.toml"
    (tmp_path / "mine.toml").write_text("a = " + "[" * 100_000)
    assert refused(recipe="mine.toml").startswith("mine.toml: ")


def test_unknown_recipe_lists_those_there_are():
    message = refused(recipe="ssd300_vgg16_vok")
    names = ", ".join(configs.list_recipes())
    assert message == f"unknown recipe 'ssd300_vgg16_vok' (did you mean ssd300_vgg16_voc?); there are: {names}"
    assert refused(recipe="../etc/passwd") == f"unknown recipe '../etc/passwd'; there are: {names}"


def test_recipes_are_listed_by_name():
    names = configs.list_recipes()
    assert names == sorted(names)
    assert {"quickstart", "ssd300_vgg16_voc", configs.DEFAULT_RECIPE} <= set(names)


CLOCKS = {"steps": (100, 0), "epochs": (3.0, 0.0), "hours": (1.5, 0.0)}  # a value, and that of a clock not in use


@pytest.mark.parametrize("recipe", CLOCKS)
@pytest.mark.parametrize("override", CLOCKS)
def test_one_clock_replaces_the_other(tmp_path, recipe, override):
    path = write_recipe(tmp_path, f"[train]\n{recipe} = {CLOCKS[recipe][0]}\nseed = 4\n")
    train = configs.load_config(path, [f"train.{override}={CLOCKS[override][0]}"]).train
    assert {name: getattr(train, name) for name in CLOCKS} == {
        name: values[name != override] for name, values in CLOCKS.items()
    }
    assert train.seed == 4


@pytest.mark.parametrize("recipe", CLOCKS)
def test_what_is_no_clock_leaves_the_clock(tmp_path, recipe):
    path = write_recipe(tmp_path, f"[train]\n{recipe} = {CLOCKS[recipe][0]}\n")
    train = configs.load_config(path, ["anchors.steps=8,16", "train.log_steps=3"]).train
    assert getattr(train, recipe) == CLOCKS[recipe][0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("steps", "epochs"), "train.steps and train.epochs exclude each other"),
        (("epochs", "steps"), "train.steps and train.epochs exclude each other"),
        (("hours", "steps"), "train.steps and train.hours exclude each other"),
        (("epochs", "hours"), "train.epochs and train.hours exclude each other"),
        (("epochs", "hours", "steps"), "train.steps and train.epochs and train.hours exclude each other"),
    ],
)
def test_two_clocks_are_refused(tmp_path, names, message):
    assert refused(*(f"train.{name}=1" for name in names)) == message
    by_steps = write_recipe(tmp_path, "[train]\nsteps = 100\n")
    assert refused(*(f"train.{name}=1" for name in names), recipe=by_steps) == message
    recipe = write_recipe(tmp_path, "\n".join(["[train]", *(f"{name} = 1" for name in names)]))
    assert refused(recipe=recipe) == f"{recipe}: {message}"
    assert refused(f"train.{names[0]}=2", recipe=recipe) == f"{recipe}: {message}"


@pytest.mark.parametrize("clock", CLOCKS)
def test_one_clock_replaces_that_of_another_run(clock):
    finished = configs.resolve_steps(configs.load_config(None, ["train.epochs=2"]), 64)
    assert configs.adapt(finished, []).train == finished.train
    train = configs.adapt(finished, [f"train.{clock}={CLOCKS[clock][0]}"]).train
    assert [getattr(train, name) for name in CLOCKS] == [values[name != clock] for name, values in CLOCKS.items()]


@pytest.mark.parametrize(
    ("overrides", "num_examples", "steps"),
    [
        (["train.steps=7"], 1000, 7),
        (["train.epochs=2", "train.batch_size=8"], 100, 25),
        (["train.epochs=1", "train.batch_size=8"], 9, 2),
        (["train.epochs=0.5", "train.batch_size=32"], 3, 1),
    ],
)
def test_epochs_become_steps(overrides, num_examples, steps):
    config = configs.resolve_steps(configs.load_config(None, overrides), num_examples)
    assert (config.train.steps, config.train.epochs, config.train.hours) == (steps, 0.0, 0.0)


def test_hours_become_the_steps_that_they_came_to():
    config = configs.load_config(None, ["train.hours=1"])
    assert (config.train.hours, config.train.steps) == (1.0, 0)
    with pytest.raises(ConfigError, match=r"^train\.hours become steps in a training alone: set train\.steps or"):
        configs.resolve_steps(config, 100)
    resolved = configs.resolve_steps(config, 100, steps=321)
    assert (resolved.train.steps, resolved.train.epochs, resolved.train.hours) == (321, 0.0, 0.0)
    assert configs.resolve_steps(resolved, 100) == resolved


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_run_goes_on_whatever_its_clock_was(clock):
    config = configs.load_config(None, [f"train.{clock}={CLOCKS[clock][0]}"])
    resolved = configs.resolve_steps(config, 320, steps=77 if clock == "hours" else None)
    configs.check_resume(resolved, configs.resolve_steps(config, 320, steps=99 if clock == "hours" else None))
    configs.check_resume(resolved, configs.resolve_steps(configs.load_config(None, ["train.steps=200"]), 320))
    with pytest.raises(ConfigError, match=r"^cannot resume: train\.ema 0\.0 → 0\.9"):
        configs.check_resume(resolved, configs.replace(resolved, train__ema=0.9))


def test_no_clock_is_an_error_naming_the_key():
    with pytest.raises(ConfigError, match=r"^set train\.steps, train\.epochs or train\.hours \(for example"):
        configs.resolve_steps(configs.Config(), 100)


def test_epochs_that_are_too_few_steps_for_an_update():
    config = configs.load_config(None, ["train.epochs=1", "train.batch_size=8", "train.accumulate=4"])
    assert configs.resolve_steps(config, 32).train.steps == 4
    with pytest.raises(ConfigError, match=r"^train\.accumulate=4: train\.steps=3 would make no update$"):
        configs.resolve_steps(config, 24)


RESUMABLE = {"train.steps", "train.checkpoint_steps", "train.keep_last"}
RESUMABLE |= {key for key in LEAVES if key.startswith("postprocess.")}
RESUMABLE |= {"train.validation_steps", "train.validation_metric", "train.log_steps"}
RESUMABLE |= {"train.early_stopping", "train.devices"}
# Settings that mean something beside others alone.
BESIDE = {
    "train.power": {"train__schedule": "polynomial"},
    "train.square_momentum": {"train__optimizer": "adam"},
    "train.epsilon": {"train__optimizer": "rmsprop"},
}


def other_value(leaf):
    """A valid value of a leaf other than its default."""
    choices, high = leaf.metadata.get("choices"), leaf.metadata.get("high")
    if choices:
        other = next(choice for choice in choices if choice != leaf.default)
        return other if leaf.type is str else (other,)
    if leaf.type is bool:
        return not leaf.default
    if leaf.type is str:
        return leaf.default + "x"
    if isinstance(leaf.type, types.GenericAlias):
        inner = typing.get_args(leaf.type)[0]
        fixed = typing.get_args(leaf.type)[-1] is not Ellipsis
        if leaf.metadata.get("columns"):
            return ((256, 512, 3, 2, 1),)
        if inner is str:
            return ("conv1",)
        return (64, 96) if fixed else ((0.5,),) if isinstance(inner, types.GenericAlias) else (0.5,)
    return leaf.type(leaf.default + 1 if high is None or leaf.default + 1 < high else leaf.default / 2 + 0.1)


@pytest.mark.parametrize("key", LEAVES)
def test_only_validation_and_logging_may_change_on_resume(key):
    section, name = key.split(".")
    old = configs.replace(configs.Config(), **BESIDE.get(key, {}))
    new = configs.replace(old, **{f"{section}__{name}": other_value(LEAVES[key])})
    assert new != old
    configs.check_resume(old, old)
    if key in RESUMABLE:
        configs.check_resume(old, new)
        return
    with pytest.raises(ConfigError) as caught:
        configs.check_resume(old, new)
    before, after = read(old, key) if read(old, key) != "" else "''", read(new, key)
    assert str(caught.value) == (f"cannot resume: {key} {before} → {after} (start a new run_dir, or --init_from)")


def number_leaf(leaf, kind):
    low, high = leaf.metadata.get("low"), leaf.metadata.get("high")
    if kind is int:
        return st.integers(-(2**40) if low is None else low, 2**40 if high is None else high)
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def values_of(leaf):
    """A strategy for all valid values of a leaf."""
    kind, choices = leaf.type, leaf.metadata.get("choices")
    if choices:
        one = st.sampled_from(choices)
        return one if kind is str else st.lists(one, max_size=3, unique=True).map(tuple)
    if kind is str:
        return st.text(st.characters(codec="utf-8"), max_size=20)
    if kind is bool:
        return st.booleans()
    if not isinstance(kind, types.GenericAlias):
        return number_leaf(leaf, kind)
    inner = typing.get_args(kind)[0]
    if inner is str:
        return st.lists(st.text("abc_1./", min_size=1, max_size=9), max_size=4).map(tuple)
    if columns := leaf.metadata.get("columns"):
        return st.lists(st.tuples(*(st.integers(*limits) for limits in columns.values())), max_size=3).map(tuple)
    if isinstance(inner, types.GenericAlias):
        return st.lists(st.lists(number_leaf(leaf, float), max_size=3).map(tuple), max_size=3).map(tuple)
    if typing.get_args(kind)[-1] is not Ellipsis:
        return st.tuples(number_leaf(leaf, inner), number_leaf(leaf, inner))
    return st.lists(number_leaf(leaf, inner), max_size=4, unique=True).map(sorted).map(tuple)


def sections():
    """A strategy for the nested dictionaries of a Config."""
    tables = {}
    for section in dataclasses.fields(configs.Config):
        leaves = {leaf.name: values_of(leaf) for leaf in dataclasses.fields(section.type)}
        tables[section.name] = st.fixed_dictionaries({}, optional=leaves)
    return st.fixed_dictionaries(tables)


def reconciled(values):
    """Nested dictionaries of a Config without their contradictions."""
    values = {section.name: dict(values.get(section.name, {})) for section in dataclasses.fields(configs.Config)}
    if values["loss"].get("classification") == "focal":
        values["loss"]["min_negatives"] = 0
    if values["loss"].get("classification") in ("sigmoid", "focal"):
        values["model"]["background_columns"] = 1
    if values["loss"].get("class_weights"):
        values["model"]["num_classes"] = len(values["loss"]["class_weights"])
    if values["model"].get("preprocessing") == "custom":
        values["model"]["input_mean"] = (1.0, 2.0, 3.0)
    if values["model"].get("heads") == "shared":
        values["model"]["last_head"] = "same"
    if values["model"].get("dual_path"):
        values["model"]["padding"] = "same"
    augment = values["augment"]
    if "jitter_scale" in augment:
        augment["jitter_scale"] = tuple(sorted(augment["jitter_scale"]))
    if augment.get("plain_last") == 1:
        augment |= {"mosaic_probability": 0.0, "mixup_probability": 0.0}
    _reconcile_training(values["train"])
    return values


def _reconcile_training(train):
    shape, kind = train.get("schedule", "cosine"), train.get("optimizer", "sgd")
    if shape == "multistep":
        train |= {
            "warmup": 0.1,
            "milestones": tuple(m for m in train.get("milestones", ()) if 0.1 < m < 1) or (0.5,),
        }
    if shape != "constant" and train.get("warmup") == 1:
        train["warmup"] = 0.5
    if shape == "exponential":
        train["final_rate"] = train.get("final_rate") or 0.5
    if shape in ("multistep", "constant"):
        train["final_rate"] = 0.0
    if shape != "polynomial":
        train["power"] = 1.0
    if kind == "sgd":
        train |= {"square_momentum": 0.0, "epsilon": 1e-7}
    for name in ("momentum", "square_momentum") if kind != "sgd" else ():
        train[name] = min(train.get(name, 0.0), 0.99)
    if 0 < train.get("steps", 0) < train.get("accumulate", 1):
        train["accumulate"] = 1
    for group in train.get("freeze", ()):
        train[f"{group}_rate"] = 1.0
    if "backbone" in train.get("freeze", ()):
        train["freeze_batch_norm"] = True


def test_dual_path_needs_the_padding_that_its_rows_are_taken_by():
    with pytest.raises(ConfigError, match=r"model\.dual_path takes the rows and columns that model\.padding=same"):
        configs.load_config(None, ["model.padding=symmetric", "model.dual_path=true"])


@settings(max_examples=60, deadline=None)
@given(sections())
def test_dump_and_load_is_the_identity(values):
    values = reconciled(values)
    config = configs.from_dict(values, "values")
    assert all(read(config, f"{s}.{n}") == value for s, leaves in values.items() for n, value in leaves.items())
    dumped = json.loads(json.dumps(configs.to_dict(config), allow_nan=False))
    assert configs.from_dict(dumped, "config.json") == config


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_dumped_leaf_read_as_override_is_the_leaf(data):
    key = data.draw(st.sampled_from([key for key, leaf in LEAVES.items() if leaf.type is not str]))
    value = data.draw(values_of(LEAVES[key]))
    section, name = key.split(".")
    values = reconciled({section: {name: value}})
    assume(values[section][name] == value)
    leaves = {f"{part}.{leaf}": value for part, table in values.items() for leaf, value in table.items()}
    overrides = [
        f"{leaf}={value if isinstance(value, str) else json.dumps(value)}" for leaf, value in leaves.items()
    ]
    assert read(configs.load_config(None, overrides), key) == value


@pytest.mark.parametrize(
    ("text", "taps"),
    [
        ("conv1", ("conv1",)),
        ("conv1, conv_pw_11_relu", ("conv1", "conv_pw_11_relu")),
        ("-3,12", ("-3", "12")),
        ('["conv1", "a,b"]', ("conv1", "a,b")),
        ('["conv1", -12]', ("conv1", "-12")),
        ("", ()),
    ],
)
def test_lists_of_names_need_no_brackets(text, taps):
    assert configs.load_config(None, [f"model.taps={text}"]).model.taps == taps


def test_focal_loss_mines_nothing():
    with pytest.raises(ConfigError, match=r"loss\.min_negatives is for mined losses"):
        configs.load_config(None, ["loss.classification=focal", "loss.min_negatives=3"])


def as_toml(override):
    """The line of a recipe that says what an override does."""
    key, _, value = override.partition("=")
    if key == "train.freeze":
        return f"{key} = {value.split(',')}"
    if key in ("train.milestones", "loss.class_weights") and "[" not in value:
        return f"{key} = [{value}]"
    return f"{key} = {value if value[0].isdigit() or value in ('true', 'false', '[]') else repr(value)}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.background_columns=2", "loss.classification=sigmoid"],
            "model.background_columns: loss.classification=sigmoid has no background",
        ),
        (
            ["model.background_columns=2", "loss.classification=focal"],
            "model.background_columns: loss.classification=focal has no background",
        ),
        (
            ["model.heads=shared", "model.last_head=conv1x1"],
            "model.last_head: shared heads are the same on every level",
        ),
        (
            ["model.num_classes=3", "loss.class_weights=1,2"],
            "loss.class_weights has 2 entries for 3 classes, it needs one for each",
        ),
        (
            ["augment.plain_last=1", "augment.mosaic_probability=0.5"],
            "augment.mosaic_probability: augment.plain_last=1 leaves no step to it",
        ),
        (
            ["augment.plain_last=1", "augment.mixup_probability=0.1"],
            "augment.mixup_probability: augment.plain_last=1 leaves no step to it",
        ),
        (
            ["train.schedule=multistep", "train.milestones=[]"],
            "train.schedule=multistep needs train.milestones",
        ),
        (
            ["train.schedule=multistep", "train.warmup=0.7"],
            "train.milestones: 0.666667 is not after the warm-up, train.warmup=0.7",
        ),
        (
            ["train.schedule=multistep", "train.milestones=0.05,0.5"],
            "train.milestones: 0.05 is not after the warm-up, train.warmup=0.05",
        ),
        (
            ["train.schedule=multistep", "train.milestones=0.5,1"],
            "train.milestones: 1 is the end of the training, nothing is left to learn at a lower rate",
        ),
        (
            ["train.schedule=multistep", "train.final_rate=0.1"],
            "train.final_rate: train.schedule=multistep does not end at a rate of its own",
        ),
        (
            ["train.schedule=constant", "train.final_rate=0.1"],
            "train.final_rate: train.schedule=constant does not end at a rate of its own",
        ),
        (
            ["train.optimizer=adam", "train.momentum=1"],
            "train.momentum=1: it is beta_1 of train.optimizer=adam, which would divide by 0",
        ),
        (
            ["train.optimizer=adamw", "train.momentum=1"],
            "train.momentum=1: it is beta_1 of train.optimizer=adamw, which would divide by 0",
        ),
        (["train.accumulate=8", "train.steps=7"], "train.accumulate=8: train.steps=7 would make no update"),
        (
            ["train.freeze=heads,extras", "train.extras_rate=0.1"],
            "train.extras_rate: train.freeze holds extras, which does not learn",
        ),
        (
            ["train.freeze=backbone", "train.freeze_batch_norm=false"],
            "train.freeze_batch_norm=false: train.freeze holds backbone, and its batch norms with it",
        ),
    ],
)
def test_leaves_that_contradict_each_other(tmp_path, overrides, message):
    assert refused(*overrides) == message
    recipe = write_recipe(tmp_path, "\n".join(map(as_toml, overrides)))
    assert refused(recipe=recipe) == f"{recipe}: {message}"
    for override in overrides:
        assert configs.load_config(None, [override]) != configs.Config()  # alone each is fine


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.warmup=1"], "train.warmup=1 leaves no step to train.schedule=cosine"),
        (
            ["train.schedule=exponential"],
            "train.schedule=exponential needs train.final_rate above 0, which it ends at (for example 0.01)",
        ),
        (["train.power=2"], "train.power is for train.schedule=polynomial, this one is cosine"),
        (["train.square_momentum=0.9"], "train.square_momentum: train.optimizer=sgd has none"),
        (["train.epsilon=1"], "train.epsilon: train.optimizer=sgd has none"),
        (
            ["train.square_momentum=1", "train.optimizer=rmsprop"],
            "train.square_momentum=1: train.optimizer=rmsprop would never see a gradient's size",
        ),
        (
            ["train.freeze=backbone,neck,extras,heads"],
            "train.freeze holds every group of layers: nothing would learn",
        ),
        (
            ["augment.jitter_scale=1.5,0.5"],
            "augment.jitter_scale: 1.5 is more than 0.5: the smallest scale comes first",
        ),
    ],
)
def test_settings_that_nothing_would_obey(tmp_path, overrides, message):
    assert refused(*overrides) == message
    recipe = write_recipe(tmp_path, "[train]\nseed = 1\n")
    assert refused(*overrides, recipe=recipe) == message


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.schedule=constant", "train.warmup=1"],  # a rate that grows to the end
        ["train.schedule=exponential", "train.final_rate=0.01"],
        ["train.schedule=polynomial", "train.power=0.9", "train.final_rate=0.1"],
        ["train.schedule=multistep", "train.warmup=0", "train.milestones=0.001,0.999"],
        ["train.milestones=0.01,1"],  # of no use to "cosine", and no harm
        ["train.momentum=1"],
        ["train.optimizer=rmsprop", "train.momentum=1", "train.epsilon=1", "train.square_momentum=0.9"],
        ["train.optimizer=adam", "train.momentum=0", "train.square_momentum=0"],
        ["train.freeze=backbone,neck,extras"],
        ["train.freeze=backbone", "train.freeze_to=extra_1"],
        ["train.freeze=extras", "train.freeze_batch_norm=false", "train.backbone_rate=0.1"],
        ["train.accumulate=8", "train.steps=8"],
        ["train.accumulate=8", "train.epochs=1"],
        ["augment.plain_last=1"],
        ["augment.plain_last=0.99", "augment.mosaic_probability=1", "augment.mixup_probability=1"],
        ["augment.jitter_scale=1,1", "augment.jitter_probability=1"],
    ],
)
def test_settings_that_go_together(overrides):
    config = configs.load_config(None, overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        assert read(config, key) == check(key, LEAVES[key], configs.settings.parse(key, LEAVES[key].type, value))


def test_padding_of_minus_one_is_tensorflows_same():
    chain = configs.load_config(None, ["model.extras_chain=[[8, 16, 3, 2, -1]]"]).model.extras_chain
    assert chain == ((8, 16, 3, 2, -1),)


def test_every_leaf_has_a_documented_kind():
    for key, leaf in LEAVES.items():
        default = read(configs.Config(), key)
        assert check(key, leaf, default) == default
        assert not (isinstance(default, float) and math.isnan(default))


def test_from_dict_names_the_file_of_damaged_settings():
    with pytest.raises(ConfigError, match=r"^run/config\.json: expected a table of sections$"):
        configs.from_dict([1], "run/config.json")
    with pytest.raises(ConfigError, match=r"^run/config\.json: unknown key modle \(did you mean model\?\)$"):
        configs.from_dict({"modle": {}}, "run/config.json")


def test_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.Config().train.batch_size = 3


def test_recipes_of_a_checkout_that_shadows_the_installed_package(monkeypatch):
    names = configs.list_recipes()

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(configs.importlib.resources, "files", missing)
    assert configs.list_recipes() == names
    assert configs.load_config("quickstart").model.backbone == "tiny_ssd"
