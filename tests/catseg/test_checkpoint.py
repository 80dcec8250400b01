"""Weights out and back to the bit, and every file that pretends to be such weights."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from catseg.checkpoint import FORMAT, ModelCard, dump_model, load_model
from catseg.settings import UNetConfig
from catseg.unet import UNet, make_unet

CARD = ModelCard(UNetConfig(2, num_classes=2), ("cat", "猫"), image_size=32, epoch=7)


@pytest.fixture(scope="module")
def model() -> UNet:
    """A U-Net whose statistics are no longer the initial ones."""
    unet = make_unet(CARD.unet, seed=1)
    unet(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return unet


def read_tensors(model: UNet) -> dict[str, torch.Tensor]:
    return load_tensors(dump_model(model, CARD))


def read_header(content: bytes) -> dict:
    """What every reader of safetensors sees first: the length of a JSON text, and the text."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.fixture
def write(tmp_path, model):
    """write(tensors=..., metadata=..., card keys): a checkpoint that is right but for these."""

    def write_file(tensors: dict | None = None, metadata: dict | None = None, **card) -> Path:
        right = read_header(dump_model(model, CARD))["__metadata__"]
        lying = right | {"card": json.dumps(json.loads(right["card"]) | card)}
        path = tmp_path / "best.safetensors"
        path.write_bytes(
            save_tensors(read_tensors(model) if tensors is None else tensors, lying if metadata is None else metadata)
        )
        return path

    return write_file


def test_weights_and_card_come_back_bit_for_bit(tmp_path, model):
    path = tmp_path / "best.safetensors"
    path.write_bytes(dump_model(model, CARD))
    loaded, card = load_model(path)
    assert card == CARD
    weights, restored = model.state_dict(), loaded.state_dict()
    assert list(weights) == list(restored)
    for name, tensor in weights.items():
        assert tensor.dtype == restored[name].dtype
        assert torch.equal(tensor, restored[name])


def test_loaded_network_predicts_what_the_dumped_one_did(tmp_path, model):
    path = tmp_path / "best.safetensors"
    path.write_bytes(dump_model(model, CARD))
    loaded, _ = load_model(path)
    assert not loaded.training
    photo = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.inference_mode():
        assert torch.equal(loaded(photo), model(photo))
    model.train()


def test_loaded_network_can_be_trained_on(write):
    loaded, _ = load_model(write())
    loaded.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


def test_dumping_is_deterministic_down_to_the_byte(model):
    assert len({dump_model(model, CARD) for _ in range(20)}) == 1


def test_dumping_what_was_loaded_gives_the_same_bytes(tmp_path, model):
    path = tmp_path / "best.safetensors"
    path.write_bytes(dump_model(model, CARD))
    assert dump_model(*load_model(path)) == path.read_bytes()


def test_other_weights_and_other_cards_give_other_bytes(model):
    other_card = ModelCard(CARD.unet, CARD.classes, CARD.image_size, epoch=8)
    assert len({dump_model(model, CARD), dump_model(model, other_card), dump_model(make_unet(CARD.unet, 2), CARD)}) == 3


def test_loading_leaves_the_global_generator_alone(write):
    path, before = write(), torch.get_rng_state()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_file_and_folder_are_refused(tmp_path, refusal):
    assert "no such checkpoint" in refusal(load_model, tmp_path / "gone.safetensors")
    assert "no such checkpoint" in refusal(load_model, tmp_path)


def refuse(refusal, path: Path) -> str:
    line = refusal(load_model, path)
    assert line.startswith(f"{path}: not a checkpoint of catseg (") and "best.safetensors" in line
    return line


def test_pickle_is_refused_and_not_run(tmp_path, refusal):
    """Both forms in which torch.save wrote a .pt; unpickling them makes a file."""
    trap = tmp_path / "trap"
    pickle = f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode()
    path = tmp_path / "best.pt"
    path.write_bytes(pickle)
    refuse(refusal, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", pickle)
        archive.writestr("best/version", "3\n")
    refuse(refusal, path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\0" * 8, b"\xff" * 64, b"{}" * 100, (2**40).to_bytes(8, "little") + b"{}"]
)
def test_file_of_anything_else_is_refused(tmp_path, refusal, content):
    path = tmp_path / "best.safetensors"
    path.write_bytes(content)
    refuse(refusal, path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 0.99999])
def test_truncated_checkpoint_is_refused(write, refusal, share):
    path = write()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refuse(refusal, path)


def test_checkpoint_with_something_behind_it_is_refused(write, refusal):
    path = write()
    path.write_bytes(path.read_bytes() + b"\0")
    refuse(refusal, path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"format": "pt"},
        {"format": FORMAT},
        {"format": FORMAT, "card": "no JSON"},
        {"format": FORMAT, "card": "[]"},
        {"format": FORMAT, "card": "{}"},
        {"format": FORMAT, "card": "null"},
        {"format": FORMAT, "card": "[" * 100_000},
    ],
    ids=lambda metadata: str(metadata)[:60],
)
def test_tensors_without_a_card_are_refused(write, refusal, metadata):
    refuse(refusal, write(metadata=metadata))


def test_checkpoint_of_another_format_is_refused(write, refusal, model):
    metadata = read_header(dump_model(model, CARD))["__metadata__"]
    path = write(metadata={name: value.replace(FORMAT, "catseg-unet-99") for name, value in metadata.items()})
    assert "catseg-unet-99" in refuse(refusal, path)


def test_file_as_it_is_written_by_these_tests_is_right(write):
    """Or all refusals here would mean nothing."""
    assert load_model(write())[1] == CARD


@pytest.mark.parametrize(
    "card",
    [
        {"unet": {"init_features": 0, "num_classes": 2}},
        {"unet": {"init_features": -2, "num_classes": 2}},
        {"unet": {"init_features": 10**9, "num_classes": 2}},
        {"unet": {"init_features": 10**400, "num_classes": 2}},
        {"unet": {"init_features": "2", "num_classes": 2}},
        {"unet": {"init_features": 2.0, "num_classes": 2}},
        {"unet": {"init_features": [2], "num_classes": 2}},
        {"unet": {"init_features": None, "num_classes": 2}},
        {"unet": {"init_features": float("nan"), "num_classes": 2}},
        {"unet": {"init_features": 4, "num_classes": 2}},  # other shapes than the tensors'
        {"unet": {"init_features": 2, "num_classes": 3}, "classes": ["a", "b", "c"]},
        {"unet": {"init_features": 2, "num_classes": 10**9}},
        {"unet": {"init_features": 2, "num_classes": 2, "path": "/etc/passwd"}},
        {"unet": {}},
        {"unet": []},
        {"unet": None},
        {"classes": ["cat"]},
        {"classes": ["cat", "dog", "cow"]},
        {"classes": []},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"classes": None},
        {"image_size": 0},
        {"image_size": -32},
        {"image_size": 33},
        {"image_size": 10**9},
        {"image_size": float("inf")},
        {"image_size": float("nan")},
        {"image_size": None},
        {"image_size": [32]},
        {"image_size": "thirty-two"},
        {"epoch": float("inf")},
        {"epoch": None},
    ],
    ids=str,
)
def test_card_that_lies_is_refused(write, refusal, card):
    refuse(refusal, write(**card))


def test_card_that_claims_a_huge_network_takes_no_memory(write):
    """700 MB of weights are claimed; the file has none of them."""
    path = write(unet={"init_features": 150, "num_classes": 2})
    script = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from catseg.checkpoint import load_model\n"
        "from catseg.errors import InputError\n"
        "torch.nn.Linear(2, 2)\n"
        "with torch.device('meta'): torch.nn.ConvTranspose2d(2, 2, 2)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_model(Path(sys.argv[1]))\n"
        "except InputError: print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=root, check=True
    )
    assert int(done.stdout) < 200  # MiB


def test_tensor_of_another_shape_type_or_name_is_refused(write, refusal, model):
    weight = read_tensors(model)["head.weight"]
    for change in (
        {"head.weight": weight[:1].contiguous()},
        {"head.weight": weight.flatten().contiguous()},
        {"head.weight": weight.half()},
        {"head.weight": weight.double()},
        {"head.weight": torch.full_like(weight, float("nan"))},
        {"head.weight": torch.full_like(weight, float("inf"))},
        {"extra": weight},
    ):
        refuse(refusal, write(tensors=read_tensors(model) | change))


def test_missing_tensor_is_refused(write, refusal, model):
    for name in ("head.bias", "encoders.0.1.running_var"):
        tensors = read_tensors(model)
        del tensors[name]
        refuse(refusal, write(tensors=tensors))
    refuse(refusal, write(tensors={}))


def test_checkpoint_is_plain_safetensors_with_a_card_in_json(model):
    """Readable by anyone, without this project."""
    header = read_header(dump_model(model, CARD))
    assert FORMAT in str(header["__metadata__"])
    card = json.loads(header["__metadata__"]["card"])
    assert card["classes"] == ["cat", "猫"]
    assert card["image_size"] == 32
    assert header["head.weight"]["dtype"] == "F32"
