"""An experiment file gives the trials it says, or one line that says what is wrong with it."""

import itertools
from pathlib import Path

import pytest

from bench.grid import MAX_TRIALS, load_experiment
from bench.trial import Halving
from catseg.errors import InputError

HEAD = "experiment: tiny\ndata: {train: photos}\n"


@pytest.fixture
def load(tmp_path):
    """Text -> Experiment."""

    def load_text(text, folders=None, only=None):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return load_experiment(path, folders or {}, only)

    return load_text


@pytest.fixture
def refuse(load, tmp_path):
    """Text that must be refused -> the one line about it, without the file's path."""

    def refuse_text(text, only=None):
        with pytest.raises(InputError) as caught:
            load(text, only=only)
        (problem,) = caught.value.problems
        assert problem.isprintable(), problem
        return problem.removeprefix(str(tmp_path / "grid.yaml"))

    return refuse_text


def test_trials_are_the_product_of_axes_and_seeds_the_last_axis_fastest(load):
    experiment = load(HEAD + "grid: {loss: [dice, bce_dice], lr: [0.1, 0.2]}\nseeds: [0, 1]\n")
    points = [(trial.train.loss, trial.train.lr, trial.train.seed) for trial in experiment.trials]
    assert points == [
        ("dice", 0.1, 0),
        ("dice", 0.1, 1),
        ("dice", 0.2, 0),
        ("dice", 0.2, 1),
        ("bce_dice", 0.1, 0),
        ("bce_dice", 0.1, 1),
        ("bce_dice", 0.2, 0),
        ("bce_dice", 0.2, 1),
    ]


def test_a_trial_is_named_by_what_varies_and_by_nothing_else(load):
    experiment = load(HEAD + "base: {epochs: 3}\ngrid: {init_features: [4], lr: [0.1, 0.2]}\nseeds: [7, 8]\n")
    names = ["lr=0.1 seed=7", "lr=0.1 seed=8", "lr=0.2 seed=7", "lr=0.2 seed=8"]
    assert [trial.name for trial in experiment.trials] == names


def test_every_setting_of_base_and_grid_reaches_the_trial(load):
    base = {"init_features": 4, "lr": 0.5, "image_size": 64, "loss": "dice", "epochs": 3, "batch_size": 5}
    base |= {"optimizer": "adam", "weight_decay": 0.1, "schedule": "constant", "precision": "float32"}
    base |= {"augment": "light", "compile": "on", "decay_norms": False, "momentum": 0.5, "clip_norm": 1.0, "ema": 0.9}
    base |= {"dice_weight": 0.5, "deep_supervision": True, "augment_fade": 0.5, "first_size": 32, "grow_epochs": 0.5}
    base |= {"val_every": 2}
    in_base = load(HEAD + "base: {" + ", ".join(f"{key}: {value}" for key, value in base.items()) + "}\nseeds: [9]\n")
    in_grid = load(HEAD + "grid: {" + ", ".join(f"{key}: [{value}]" for key, value in base.items()) + "}\nseeds: [9]\n")
    assert in_base.trials[0].settings == base | {"seed": 9}
    assert in_grid.trials[0].settings == base | {"seed": 9}


def test_none_is_a_word_in_a_grid_as_it_is_in_the_settings(load):
    """YAML's nothing is `null`."""
    trials = load(HEAD + "grid: {augment: [none, light]}\n").trials
    assert [trial.train.augment for trial in trials] == ["none", "light"]
    assert [trial.name for trial in trials] == ["augment=none", "augment=light"]


def test_on_and_off_are_words_though_yaml_makes_booleans_of_them(load):
    trials = load(HEAD + "grid: {compile: [off, on, auto]}\n").trials
    assert [trial.train.compile for trial in trials] == ["off", "on", "auto"]


def test_a_file_without_base_grid_and_seeds_is_one_trial_with_seed_0(load):
    (trial,) = load(HEAD).trials
    assert trial.train.seed == 0
    assert "lr=" in trial.name


def test_a_whole_number_is_a_learning_rate_too(load):
    (trial,) = load(HEAD + "base: {lr: 1}\n").trials
    assert trial.settings["lr"] == 1.0
    assert isinstance(trial.settings["lr"], float)


def test_the_network_gets_a_logit_for_each_class(load):
    (trial,) = load("experiment: tiny\ndata: {train: photos, classes: [cat, dog]}\n").trials
    assert trial.unet.num_classes == 2


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("loss=dice", ["lr=0.001 loss=dice", "lr=0.002 loss=dice"]),
        ("loss=dice,lr=1e-3", ["lr=0.001 loss=dice"]),
        ("lr=0.0010, loss=bce_dice", ["lr=0.001 loss=bce_dice"]),
        ("lr=0.001,lr=0.002,loss=dice", ["lr=0.001 loss=dice", "lr=0.002 loss=dice"]),
        ("image_size=32.0,loss=dice,lr=0.002", ["lr=0.002 loss=dice"]),
    ],
)
def test_only_keeps_the_trials_that_match_and_their_names(load, only, names):
    text = HEAD + "base: {image_size: 32}\ngrid: {lr: [0.001, 0.002], loss: [dice, bce_dice]}\n"
    assert [trial.name for trial in load(text, only=only).trials] == names


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("ema=null", ["ema=null deep_supervision=false", "ema=null deep_supervision=true"]),
        ("deep_supervision=true,ema=0.990", ["ema=0.99 deep_supervision=true"]),
        ("deep_supervision=False,ema=None", ["ema=null deep_supervision=false"]),  # as Python has them
    ],
)
def test_only_takes_null_true_and_false_as_the_file_has_them(load, only, names):
    text = HEAD + "grid: {ema: [null, 0.99], deep_supervision: [false, true]}\n"
    assert [trial.name for trial in load(text, only=only).trials] == names


@pytest.mark.parametrize(
    ("only", "line"),
    [
        ("loss", "--only: 'loss' is not setting=value; settings are init_features, lr, "),
        ("colour=red", "--only: 'colour=red' is not setting=value"),
        ("loss=dice,", "--only: '' is not setting=value"),
        ("loss=focal", "--only: no trial has loss=focal; this grid has bce_dice, dice"),
        ("lr=0.5", "--only: no trial has lr=0.5; this grid has 0.001"),
        ("ema=0.5", "--only: no trial has ema=0.5; this grid has null"),
    ],
)
def test_only_that_matches_nothing_says_what_there_is(refuse, only, line):
    assert refuse(HEAD + "grid: {lr: [0.001], loss: [dice, bce_dice]}\n", only).startswith(line)


def test_a_files_folders_start_at_the_file_and_those_of_flags_at_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "grid.yaml"
    path.write_text("experiment: tiny\ndata: {train: ../photos, val: valid, test: /data/test}\n")
    monkeypatch.chdir(tmp_path)
    data = load_experiment(Path("experiments/grid.yaml"), {"val": "elsewhere", "train": None}, None).data
    assert Path(data.train).resolve() == tmp_path / "photos"
    assert data.val == "elsewhere"
    assert data.test == "/data/test"


def test_sample_and_train_are_words_and_no_folders(load):
    data = load("experiment: tiny\ndata: {train: sample, val: train}\n").data
    assert (data.train, data.val) == ("sample", "train")


LRS = "grid: {lr: [0.1, 0.2, 0.3, 0.4]}\n"


def test_a_search_is_read_with_its_defaults_and_full_is_none(load):
    assert load(HEAD + LRS).search is None
    assert load(HEAD + LRS + "search:\n").search is None
    assert load(HEAD + LRS + "search: {mode: full, first_epochs: 5, keep: 9}\n").search is None
    assert load(HEAD + LRS + "search: {mode: halving}\n").search == Halving(first_epochs=3, keep=3)
    searched = load(HEAD + LRS + "search: {mode: halving, first_epochs: 5, keep: 1}\n")
    assert searched.search == Halving(5, 1)
    assert searched.trials == load(HEAD + LRS).trials


def test_only_leaves_a_search_more_settings_than_it_keeps(load, refuse):
    text = HEAD + LRS + "seeds: [0, 1]\nsearch: {mode: halving, keep: 2}\n"
    assert len(load(text, only="lr=0.1,lr=0.2,lr=0.3").trials) == 6
    assert refuse(text, only="lr=0.1,lr=0.2") == "--only: leaves 2 settings, and search.keep is 2; choose more"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # keys
        ("epoch: 3\n", ": the file: unknown key 'epoch'; known are experiment, data, base, grid, seeds"),
        ("base: {learning_rate: 0.1}\n", ": base: unknown key 'learning_rate'; "),
        ("base: {batchsize: 4}\n", ": base: unknown key 'batchsize'; did you mean batch_size?"),
        ("base: {init_feature: 4}\n", ": base: unknown key 'init_feature'; did you mean init_features?"),
        ("grid: {losses: [dice]}\n", ": grid: unknown key 'losses'; did you mean loss?"),
        ("base: {zzzz: 4}\n", ": base: unknown key 'zzzz'; known are init_features, lr, "),
        ("3: 4\n", ": the file: unknown key 3; known are experiment, "),
        ("base: {lr: 0.1, lr: 0.2}\n", ":3: lr stands twice"),
        ("base: {lr: 0.1}\nbase: {lr: 0.2}\n", ":4: base stands twice"),
        ("base: {lr: 0.1}\ngrid: {lr: [0.1, 0.2]}\n", ": lr stands in base and in grid; keep one"),
        # types
        ("base: {epochs: many}\n", ": base.epochs: got 'many'; a number of type int is needed"),
        ("base: {epochs: 1.5}\n", ": base.epochs: got 1.5; a number of type int is needed"),
        ("base: {epochs: true}\n", ": base.epochs: got True; a number of type int is needed"),
        ("base: {lr: yes}\n", ": base.lr: got True; a number of type float is needed"),
        ("base: {epochs: null}\n", ": base.epochs: got None; a number of type int is needed"),
        ("base: {lr: [0.1]}\n", ": base.lr: got [0.1]; a number of type float is needed"),
        ("grid: {lr: 0.1}\n", ": grid.lr: a list with at least one value is needed, got 0.1"),
        ("grid: {loss: [focal]}\n", ": grid.loss: unknown 'focal'; choose dice, bce_dice"),
        ("grid: {augment: [none, heavy]}\n", ": grid.augment: unknown 'heavy'; choose none, light"),
        ("base: {augment: on}\n", ": base.augment: unknown True; choose none, light"),
        ("base: {augment: null}\n", ": base.augment: unknown None; choose none, light"),
        ("grid: {image_size: [32, true]}\n", ": grid.image_size: got True; "),
        ("base: [1]\n", ": base: `key: value` lines are needed, got [1]"),
        ("seeds: [true]\n", ": seeds: got True; "),
        ("seeds: 3\n", ": seeds: a list with at least one value is needed, got 3"),
        # numbers that YAML reads as text
        ("base: {lr: 1e-3}\n", ": base.lr: got '1e-3'; YAML reads this as text; write 1.0e-3"),
        ("base: {lr: 1e30}\n", ": base.lr: got '1e30'; YAML reads this as text; write 1.0e+30"),
        ("grid: {lr: [0.1, 5E-4]}\n", ": grid.lr: got '5E-4'; YAML reads this as text; write 5.0e-4"),
        ("base: {epochs: '12'}\n", ": base.epochs: got '12'; YAML reads this as text; write 12"),
        # lists
        ("grid: {lr: []}\n", ": grid.lr: a list with at least one value is needed, got []"),
        ("seeds: []\n", ": seeds: a list with at least one value is needed, got []"),
        ("grid: {lr: [0.1, 0.2, 0.1]}\n", ": grid.lr: a value stands twice"),
        ("seeds: [1, 1]\n", ": seeds: a value stands twice"),
        # ranges
        ("base: {image_size: 100}\n", ": image_size: must be a multiple of 16 from 32 to 4096, got 100"),
        ("grid: {image_size: [32, 16]}\n", ": image_size: must be a multiple of 16 from 32 to 4096, got 16"),
        ("base: {epochs: 0}\n", ": epochs: must be at least 1, got 0"),
        ("base: {batch_size: -1}\n", ": batch_size: must be at least 1, got -1"),
        ("base: {lr: 0}\n", ": lr: must be above 0 and finite, got 0.0"),
        ("base: {lr: .nan}\n", ": lr: must be above 0 and finite, got nan"),
        ("base: {lr: .inf}\n", ": lr: must be above 0 and finite, got inf"),
        ("base: {weight_decay: 1.0}\n", ": weight_decay: must be 0 to below 1, got 1.0"),
        ("base: {init_features: 0}\n", ": init_features: must be 1 to 512, got 0"),
        ("seeds: [-1]\n", ": seed: must be at least 0, got -1"),
        # a search
        ("search: halving\n", ": search: `key: value` lines are needed, got 'halving'"),
        ("search: {keep: 2}\n", ": search.mode: unknown None; choose full, halving"),
        ("search: {mode: asha}\n", ": search.mode: unknown 'asha'; choose full, halving"),
        ("search: {mode: halving, eta: 3}\n", ": search: unknown key 'eta'; known are mode, first_epochs, keep"),
        (
            "search: {mode: halving, first_epoch: 3}\n",
            ": search: unknown key 'first_epoch'; did you mean first_epochs?",
        ),
        ("search: {mode: full, keep: 0}\n", ": search.keep: a whole number from 1 is needed, got 0"),
        (LRS + "search: {mode: halving, keep: true}\n", ": search.keep: a whole number from 1 is needed, got True"),
        (
            LRS + "search: {mode: halving, first_epochs: 1.5}\n",
            ": search.first_epochs: a whole number from 1 is needed",
        ),
        (LRS + "search: {mode: halving, first_epochs: 0}\n", ": search.first_epochs: a whole number from 1 is needed"),
        (
            LRS + "search: {mode: halving, first_epochs: 12}\n",
            ": search.first_epochs: 12 is not below the 12 epochs of",
        ),
        (LRS + "search: {mode: halving, keep: 4}\n", ": search.keep: 4 of 4 settings: nothing would be stopped; "),
        (
            "seeds: [0, 1, 2, 3]\nsearch: {mode: halving, keep: 1}\n",
            ": search.keep: 1 of 1 settings: nothing would be stopped; lower it, or mode: full",
        ),
        (
            "grid: {epochs: [10, 20], lr: [0.1, 0.2]}\nsearch: {mode: halving}\n",
            ": grid.epochs: settings of unequal length cannot be halved; keep one, or mode: full",
        ),
        # YAML's surprises
        ("base: &all {lr: 0.1}\n", ":3: anchors and aliases are not read"),
        ("base: {lr: *all}\n", ":3: anchors and aliases are not read"),
        ("grid: !!python/object/apply:os.system [ls]\n", ":3: could not determine a constructor"),
        ("base: {lr: 0.1\n", ":4: "),
        ("---\nbase: {}\n", ":3: "),
        ("base: {lr: 2020-13-45}\n", ": not YAML (month must be in 1..12)"),
    ],
)
def test_a_wrong_file_is_answered_with_one_line(refuse, text, line):
    answer = refuse(HEAD + text)
    assert answer.startswith(line), answer


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ": the file: `key: value` lines are needed"),
        ("hello\n", ": the file: `key: value` lines are needed"),
        ("data: {train: photos}\n", ": experiment: a name of letters, digits, - and _ is needed, got None"),
        ("experiment: a/b\n", ": experiment: a name of letters, digits, - and _ is needed, got 'a/b'"),
        ("experiment: ../up\n", ": experiment: a name of letters, "),
        ("experiment: two words\n", ": experiment: a name of letters, "),
        ("experiment: 2026\n", ": experiment: a name of letters, "),
        ("experiment: a\ndata: photos\n", ": data: `key: value` lines are needed, got 'photos'"),
        ("experiment: a\ndata: {trian: photos}\n", ": data: unknown key 'trian'; did you mean train?"),
        ("experiment: a\ndata: {train: 3}\n", ": data.train: a folder, `sample` or null is needed, got 3"),
        ("experiment: a\ndata: {val_fraction: 25}\n", ": data.val_fraction: a share such as 0.25 is needed, got 25"),
        ("experiment: a\ndata: {val_fraction: 1.5}\n", ": data.val_fraction: must lie between 0 and 1, got 1.5"),
        ("experiment: a\ndata: {classes: cat}\n", ": data.classes: a list of names is needed, got 'cat'"),
        ("experiment: a\ndata: {classes: []}\n", ": data.classes: must be different names of objects"),
        ("experiment: a\ndata: {classes: [cat, cat]}\n", ": data.classes: must be different names of objects"),
        ("experiment: a\ndata: {classes: [__ignore__]}\n", ": data.classes: must be different names of objects"),
        ("[" * 50_000, ": not YAML ("),
        ("{a: " * 20_000, ": not YAML ("),
        ("a\0b", ": not YAML ("),
        ("experiment: a\nbase: {epochs: " + "9" * 5_000 + "}\n", ": not YAML ("),
    ],
)
def test_a_wrong_head_is_answered_with_one_line(refuse, text, line):
    answer = refuse(text)
    assert answer.startswith(line), answer


@pytest.mark.parametrize("text", ["nan", "inf", "-infinity", "1" + "0" * 400])
def test_text_that_python_calls_a_number_is_refused_like_any_other(refuse, text):
    assert refuse(HEAD + f"base: {{lr: {text}}}\n").startswith(": base.lr: ")


def test_advice_does_not_turn_a_fraction_into_another_number(refuse):
    answer = refuse(HEAD + "base: {epochs: '1.5'}\n")
    assert "write 1" not in answer


def test_null_is_a_value_of_the_settings_that_can_be_off(load):
    trials = load(HEAD + "grid: {ema: [null, 0.99], first_size: [null, 64], deep_supervision: [false, true]}\n").trials
    values = [(trial.train.ema, trial.train.first_size, trial.train.deep_supervision) for trial in trials]
    assert values == list(itertools.product([None, 0.99], [None, 64], [False, True]))
    assert len({trial.name for trial in trials}) == 8
    (trial,) = load(HEAD + "grid: {clip_norm: [1, 2], first_size: [null]}\n", only="clip_norm=1").trials
    assert (trial.train.clip_norm, trial.train.first_size) == (1.0, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{lr: null}", ": base.lr: got None; a number of type float is needed"),
        ("{ema: high}", ": base.ema: got 'high'; a number of type float is needed"),
        ("{first_size: 64.0}", ": base.first_size: got 64.0; a number of type int is needed"),
        ("{first_size: true}", ": base.first_size: got True; a number of type int is needed"),
        ("{deep_supervision: 1}", ": base.deep_supervision: got 1; true or false is needed"),
        ("{first_size: 72}", ": first_size: must be a multiple of 16"),
    ],
)
def test_what_is_neither_null_nor_of_a_settings_type_is_refused(refuse, text, line):
    assert refuse(HEAD + f"base: {text}\n").startswith(line)


@pytest.mark.parametrize("text", ["? [a, b]\n: 3\n", "{a: 1}: 2\n", "base: {? [lr] : 0.1}\n"])
def test_a_key_that_is_no_word_is_refused(refuse, text):
    assert refuse(HEAD + text).startswith(":")


def test_a_merge_is_refused_like_an_alias(refuse):
    assert refuse(HEAD + "base:\n  <<: {lr: 0.1}\n").startswith(":")


def test_a_value_that_stands_twice_in_two_spellings_is_refused(refuse):
    assert "keep one" in refuse(HEAD + "grid: {lr: [1, 1.0]}\n")


def test_a_seed_that_torch_cannot_take_is_refused_before_the_first_trial(refuse):
    assert refuse(HEAD + f"seeds: [{10**20}]\n").startswith(": seed")


def test_a_seed_in_the_grid_is_sent_to_seeds(refuse):
    assert "seeds" in refuse(HEAD + "grid: {seed: [0, 1]}\n")


def test_too_many_trials_are_refused_before_they_are_made(refuse):
    answer = refuse(HEAD + f"seeds: [{', '.join(map(str, range(MAX_TRIALS + 1)))}]\n")
    assert answer.startswith(": 10,001 trials are over 10,000")


def test_as_many_trials_as_are_allowed_are_made(load):
    assert len(load(HEAD + f"seeds: [{', '.join(map(str, range(MAX_TRIALS)))}]\n").trials) == MAX_TRIALS


def test_a_file_over_one_megabyte_is_refused_unread(refuse):
    assert refuse(HEAD + "#" * 1_000_000).startswith(": over 1 MB")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="no such experiment file; check --grid"):
            load_experiment(path, {}, None)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_bytes("experiment: café\n".encode("latin-1"))
    with pytest.raises(InputError, match="not YAML") as caught:
        load_experiment(path, {}, None)
    assert len(caught.value.problems) == 1
