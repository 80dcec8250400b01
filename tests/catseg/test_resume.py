"""A training stopped anywhere and gone on with ends where it would have ended, to the bit; all else is refused."""

import dataclasses
import hashlib
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catseg.checkpoint import TRAINING_FORMAT, dump_training, load_training, read_epoch
from catseg.dataset import PhotoSet
from catseg.settings import TrainConfig, UNetConfig
from catseg.train import Epoch, Training, advance, make_training
from catseg.unet import make_unet

CPU = torch.device("cpu")
TINY = TrainConfig(lr=0.02, image_size=32, epochs=3, batch_size=2, precision="float32")
NUM_TRAIN, NUM_VAL = 5, 3
NUM_STEPS = 3  # an epoch: batches of 2, 2 and 1
EVENTS_PER_EPOCH = NUM_STEPS + 2 + 1  # they, batches of 2 and 1 validated, and the epoch
NUM_EVENTS = TINY.epochs * EVENTS_PER_EPOCH


@pytest.fixture(scope="module")
def photos(make_set) -> tuple[PhotoSet, PhotoSet]:
    """To train and to validate on."""
    return make_set(NUM_TRAIN), make_set(NUM_VAL)


def make_fresh(config: TrainConfig = TINY, init_features: int = 2, seed: int = 0) -> Training:
    return make_training(make_unet(UNetConfig(init_features), seed), config, NUM_TRAIN, CPU)


def stop_after(training: Training, photos: tuple[PhotoSet, PhotoSet], num_events: int) -> list[Epoch]:
    """Take so many steps and epochs, then ask to stop; the epochs that were whole by then."""
    epochs = []
    for number, event in enumerate(advance(training, *photos), 1):
        assert number <= num_events, "something was done after the request to stop"
        if isinstance(event, Epoch):
            epochs.append(event)
        training.stopping = number == num_events
    return epochs


def go_on(checkpoint: bytes, config: TrainConfig = TINY) -> Training:
    """As another process would, but for the weights that it starts from: all must come from the checkpoint."""
    training = make_fresh(config, seed=100)
    load_training(checkpoint, training)
    return training


def summarise(training: Training, epochs: list[Epoch]) -> dict:
    """All that must be the same to the bit; seconds are not."""
    tensors = {f"model.{name}": tensor for name, tensor in training.learner.state_dict().items()}
    if training.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in training.average.model.state_dict().items()}
        tensors["num_averaged"] = torch.tensor(training.average.num_steps)
    tensors |= {f"best.{name}": tensor for name, tensor in training.best.weights.items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return {
        "tensors": digest.hexdigest(),
        "epochs": [describe(epoch) for epoch in epochs],
        "best": (training.best.miou, describe(training.best.epoch)),
        "lr": training.optimizer.param_groups[0]["lr"],
        "scaler": training.scaler.state_dict(),
        "epoch": (training.epoch, len(training.epoch_seconds), training.losses),
        "mious": (training.mious, len(training.val_seconds)),
    }


def describe(epoch: Epoch) -> tuple:
    return epoch.number, epoch.train_loss, epoch.val_loss, epoch.lr, epoch.val_counts_NK3.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "schedule": "one_cycle", "loss": "bce_dice"},
        {"optimizer": "adam", "schedule": "constant", "loss": "dice"},
        {"optimizer": "adam", "schedule": "one_cycle", "loss": "bce_dice", "precision": "bfloat16"},
        {"optimizer": "adamw", "schedule": "constant", "loss": "dice"},
        {"optimizer": "adamw", "schedule": "one_cycle", "loss": "bce_dice", "augment": "light"},
        {"optimizer": "adam", "schedule": "constant", "precision": "bfloat16", "augment": "light"},
        {"schedule": "cosine", "ema": 0.9, "decay_norms": False, "augment": "strong", "augment_fade": 0.7},
        {"schedule": "plateau", "optimizer": "rmsprop", "momentum": 0.9, "clip_norm": 1.0, "ema": 0.5},
        {"schedule": "plateau", "optimizer": "rmsprop", "deep_supervision": True, "dice_weight": 0.3},
        {"image_size": 48, "first_size": 32, "deep_supervision": True, "ema": 0.9},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_training_stopped_at_any_event_ends_as_if_it_never_had_been(photos, make_set, settings):
    config = dataclasses.replace(TINY, **settings)
    if config.image_size != TINY.image_size:
        photos = make_set(NUM_TRAIN, config.image_size), make_set(NUM_VAL, config.image_size)
    undisturbed = make_fresh(config)
    expected = summarise(undisturbed, stop_after(undisturbed, photos, NUM_EVENTS))
    assert len(expected["epochs"]) == 3
    for num_events in range(1, NUM_EVENTS + 1):
        first = make_fresh(config)
        epochs = stop_after(first, photos, num_events)
        assert first.epoch == len(epochs) == num_events // EVENTS_PER_EPOCH
        second = go_on(dump_training(first), config)
        epochs += [event for event in advance(second, *photos) if isinstance(event, Epoch)]
        assert summarise(second, epochs) == expected, f"stopped after {num_events} events"


@pytest.mark.parametrize(
    ("seed", "precision", "augment"),
    [
        (0, "float32", "none"),
        (1, "float32", "none"),
        (2, "float32", "light"),
        (3, "bfloat16", "none"),
        (4, "bfloat16", "light"),
        (5, "float16", "none"),
    ],
)
def test_training_stopped_again_and_again_ends_the_same(photos, seed, precision, augment):
    """Every process gets 1 to 5 events far; a validation that was stopped is done again."""
    config, lengths = dataclasses.replace(TINY, precision=precision, augment=augment), random.Random(seed)
    undisturbed = make_fresh(config)
    expected = summarise(undisturbed, stop_after(undisturbed, photos, NUM_EVENTS))
    training = make_fresh(config)
    epochs = stop_after(training, photos, lengths.randint(1, 5))
    num_rounds = 1
    while training.epoch < config.epochs:
        training = go_on(dump_training(training), config)
        epochs += stop_after(training, photos, lengths.randint(1, 5))
        num_rounds += 1
    assert num_rounds >= 4
    assert summarise(training, epochs) == expected


def test_training_that_has_not_begun_is_gone_on_with_too(photos):
    undisturbed, other = make_fresh(), go_on(dump_training(make_fresh()))
    expected = summarise(undisturbed, stop_after(undisturbed, photos, NUM_EVENTS))
    assert summarise(other, stop_after(other, photos, NUM_EVENTS)) == expected


def test_finished_training_has_nothing_left_to_do(photos):
    training = make_fresh()
    stop_after(training, photos, NUM_EVENTS)
    assert list(advance(go_on(dump_training(training)), *photos)) == []


def test_dumping_disturbs_nothing(photos):
    """A checkpoint between any two steps, and on without stopping."""
    undisturbed, dumped, epochs = make_fresh(), make_fresh(), []
    expected = summarise(undisturbed, stop_after(undisturbed, photos, NUM_EVENTS))
    for event in advance(dumped, *photos):
        dump_training(dumped)
        epochs += [event] * isinstance(event, Epoch)
    assert summarise(dumped, epochs) == expected


@pytest.fixture(scope="module", params=[4, EVENTS_PER_EPOCH + 2], ids=["validating", "second epoch"])
def stopped(request, photos) -> Training:
    training = make_fresh()
    stop_after(training, photos, request.param)
    return training


def test_seconds_are_kept(stopped):
    again = go_on(dump_training(stopped))
    assert again.seconds == stopped.seconds > 0
    assert again.epoch_seconds == stopped.epoch_seconds
    assert (again.val_seconds, again.mious) == (stopped.val_seconds, stopped.mious)
    assert len(stopped.mious) == stopped.epoch


def test_best_epoch_is_kept_with_its_seconds(photos):
    training = make_fresh()
    (first,) = stop_after(training, photos, EVENTS_PER_EPOCH + 2)
    best = go_on(dump_training(training)).best
    assert {**vars(best.epoch), "val_counts_NK3": None} == {**vars(first), "val_counts_NK3": None}
    assert best.epoch.val_counts_NK3.tolist() == first.val_counts_NK3.tolist()
    assert best.epoch.val_counts_NK3.dtype == first.val_counts_NK3.dtype


def test_the_epoch_is_read_without_the_tensors(stopped):
    assert read_epoch(dump_training(stopped)) == stopped.epoch


def test_same_state_gives_the_same_bytes(stopped):
    checkpoint = dump_training(stopped)
    assert {dump_training(stopped) for _ in range(5)} == {checkpoint}
    assert dump_training(go_on(checkpoint)) == checkpoint


def test_global_random_state_comes_back(stopped):
    torch.manual_seed(7)
    checkpoint = dump_training(stopped)
    expected = torch.rand(3)
    torch.manual_seed(8)
    go_on(checkpoint)
    assert torch.equal(torch.rand(3), expected)


def test_stopping_is_not_kept(stopped):
    assert stopped.stopping
    assert not go_on(dump_training(stopped)).stopping


def test_checkpoint_takes_16_bytes_a_parameter(photos):
    """Weight, both of Adam's averages and best weight, 4 bytes each; names and statistics are the rest.

    With 4 features: 74 188 in the blocks down and the bottleneck, 10 940 to scale up, 36 960 in the blocks up, head 5.
    """
    training = make_fresh(init_features=4)
    stop_after(training, photos, EVENTS_PER_EPOCH)
    assert len(dump_training(training)) == pytest.approx(16 * (74_188 + 10_940 + 36_960 + 5), rel=0.04)


def refuse(checkpoint: bytes, training: Training) -> str:
    """The one line with which it is refused."""
    with pytest.raises(ValueError) as caught:
        load_training(checkpoint, training)
    line = str(caught.value)
    assert line and line.isprintable(), f"more than one line: {line!r}"
    return line


@pytest.fixture(scope="module")
def checkpoint(photos) -> bytes:
    """With everything in it: an epoch that is whole, and two steps of the next."""
    training = make_fresh()
    stop_after(training, photos, EVENTS_PER_EPOCH + 2)
    return dump_training(training)


@pytest.fixture(scope="module")
def target() -> Training:
    """What is never gone on with, so it may stay half loaded."""
    return make_fresh()


def read_facts(checkpoint: bytes) -> dict:
    length = int.from_bytes(checkpoint[:8], "little")
    return json.loads(json.loads(checkpoint[8 : 8 + length])["__metadata__"]["training"])


def forge(checkpoint: bytes, tensors: dict[str, torch.Tensor] | None = None, **facts) -> bytes:
    """The checkpoint, with other tensors or other facts; None takes a fact away."""
    lying = {name: value for name, value in (read_facts(checkpoint) | facts).items() if value is not None}
    return save_tensors(load_tensors(checkpoint) if tensors is None else tensors, {"training": json.dumps(lying)})


def test_checkpoint_as_these_tests_forge_it_is_right(checkpoint):
    """Or all refusals here would mean nothing."""
    assert dump_training(go_on(forge(checkpoint))) == checkpoint


@pytest.mark.parametrize("unet", [UNetConfig(1), UNetConfig(4), UNetConfig(2, num_classes=2)], ids=str)
def test_checkpoint_of_another_network_is_refused(checkpoint, unet):
    refuse(checkpoint, make_training(make_unet(unet, 0), TINY, NUM_TRAIN, CPU))


def test_truncated_checkpoint_is_refused(checkpoint, target):
    header = 8 + int.from_bytes(checkpoint[:8], "little")
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(checkpoint) - 1}
    cuts |= {number * header // 20 for number in range(20)} | {number * len(checkpoint) // 80 for number in range(80)}
    for cut in sorted(cuts):
        refuse(checkpoint[:cut], target)


def test_checkpoint_with_something_behind_it_is_refused(checkpoint, target):
    refuse(checkpoint + b"\0", target)


def test_checkpoint_of_another_format_is_refused_by_name(checkpoint, target):
    assert "catseg-training-99" in refuse(forge(checkpoint, format="catseg-training-99"), target)
    assert TRAINING_FORMAT in refuse(forge(checkpoint, format="catseg-unet-1"), target)


def test_checkpoint_without_one_of_its_tensors_is_refused(checkpoint, target):
    """One of each kind: weights, biases, statistics, Adam's averages and steps, the best ones, ..."""
    whole = load_tensors(checkpoint)
    kinds = {(name.split(".")[0], name.split(".")[-1]): name for name in whole}
    assert len(kinds) == 2 * 5 + 3 + 3
    for missing in kinds.values():
        refuse(forge(checkpoint, {name: tensor for name, tensor in whole.items() if name != missing}), target)
    refuse(forge(checkpoint, {}), target)


def test_checkpoint_without_any_one_of_its_facts_is_refused(checkpoint, target):
    for missing in read_facts(checkpoint):
        refuse(forge(checkpoint, **{missing: None}), target)


@pytest.mark.parametrize("name", ["model.more", "optimizer.0.more", "optimizer.999.step", "optimizer.x.step", "more"])
def test_checkpoint_with_a_tensor_too_many_is_refused(checkpoint, target, name):
    refuse(forge(checkpoint, load_tensors(checkpoint) | {name: torch.zeros(1)}), target)


@pytest.mark.parametrize(
    "name",
    [
        "model.head.weight",
        "best.head.weight",
        "optimizer.0.exp_avg",
        "optimizer.3.exp_avg_sq",
        "optimizer.0.step",
        "random.cpu",
        "losses",
        "best_counts",
    ],
)
def test_tensor_of_another_shape_or_type_is_refused(checkpoint, target, name):
    tensors = load_tensors(checkpoint)
    dtype = tensors[name].dtype
    for other in (torch.zeros(7, 3, dtype=dtype), torch.zeros(1, 1, 1, 1, 1, dtype=dtype), tensors[name].half()):
        refuse(forge(checkpoint, tensors | {name: other}), target)


@pytest.mark.parametrize("content", [b"{}" * 100, b"\0" * 8, b"\xff" * 64, (2**63).to_bytes(8, "little") + b"{}"])
def test_anything_else_is_refused(target, content):
    refuse(content, target)


@pytest.mark.parametrize(
    "metadata", [{}, {"card": "{}"}] + [{"training": text} for text in ("", "null", "[]", "{}", "7", "[" * 100_000)]
)
def test_tensors_without_facts_are_refused(checkpoint, target, metadata):
    refuse(save_tensors(load_tensors(checkpoint), metadata), target)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(target, content):
    refuse(content, target)


def test_checkpoint_with_a_wrong_byte_in_its_header_is_loaded_or_refused(checkpoint, target):
    header, numbers = 8 + int.from_bytes(checkpoint[:8], "little"), random.Random(0)
    for _ in range(200):
        place = numbers.randrange(header)
        broken = checkpoint[:place] + bytes([numbers.randrange(256)]) + checkpoint[place + 1 :]
        try:
            load_training(broken, target)
        except ValueError as error:
            assert str(error).isprintable(), repr(str(error))
