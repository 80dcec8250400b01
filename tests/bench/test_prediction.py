"""`bench predict` as typed: outlines to correct, the photos it is least sure of, folders, unreadable photos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catseg.checkpoint import ModelCard, dump_model
from catseg.folder import list_pairs
from catseg.labelme import load_labels
from catseg.settings import UNetConfig
from catseg.unet import make_unet

CARD = ModelCard(UNetConfig(2), ("cat",), image_size=32, epoch=1)


class Brightness(torch.nn.Module):
    """Calls bright pixels cats, the surer the brighter: middle grey is a toss-up."""

    def forward(self, photo_B3HW):
        return 40 * (photo_B3HW.mean(dim=1, keepdim=True) - 0.5)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with four photos, bright left and dark right, by contrast; the model knows just this."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.prediction.load_model", lambda path: (Brightness(), CARD))
    Path("photos").mkdir()
    for name, contrast in (("sure", 127), ("doubtful", 5), ("fair", 20), ("good", 60)):
        pixels = np.full((48, 64, 3), 128 - contrast, np.uint8)
        pixels[:, :32] = 127 + contrast
        Image.fromarray(pixels).save(f"photos/{name}.png")
    return tmp_path / "photos"


def list_masks(folder: str = "out") -> list[str]:
    return sorted(path.stem for path in Path(folder).glob("*.png") if not path.stem.endswith("_overlay"))


def read_expected(output: str) -> dict[str, float]:
    """Photo -> expected IoU, in the order of the lines."""
    lines = [line.partition(": expected IoU ") for line in output.splitlines() if "expected IoU" in line]
    return {Path(path).stem: float(rest.partition(",")[0]) for path, _, rest in lines}


def test_photos_have_masks_overlays_and_a_line_each(photos, bench):
    result = bench("predict", "m.safetensors", "photos/sure.png", "photos/good.png", "--out", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"photos/{name}.png: cat on 50.0% of it -> out/{name}.png out/{name}_overlay.png" for name in ("sure", "good")
    ]


def test_folder_is_all_photos_in_it(photos, bench):
    (photos / "notes.txt").touch()
    assert bench("predict", "m.safetensors", "photos", "--out", "out").exit_code == 0
    assert list_masks() == ["doubtful", "fair", "good", "sure"]
    Path("empty").mkdir()
    result = bench("predict", "m.safetensors", "empty", "--out", "out2")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("empty: no photos")


def test_outlines_lie_beside_a_copy_of_each_photo_and_the_next_command_is_said(photos, bench):
    result = bench("predict", "m.safetensors", "photos", "--out", "out", "--labelme")
    assert result.exit_code == 0
    *lines, last = result.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [
        f"out/labelme/{name}.json" for name in ("doubtful", "fair", "good", "sure")
    ]
    assert last == "To correct the outlines: bench data label out/labelme --labels out/labelme/labels.txt"
    for pair in list_pairs("out/labelme", load_labels(Path("out/labelme/labels.txt"))):
        with Image.open(f"out/{pair.name}.png") as mask:
            assert (pair.read()[1] == np.asarray(mask)).mean() > 0.99
    again = bench("predict", "m.safetensors", "photos", "--out", "out", "--labelme")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "is there already, perhaps corrected" in again.stderr


def test_predicted_outlines_go_through_the_check_of_a_dataset(photos, bench):
    assert bench("predict", "m.safetensors", "photos", "--out", "out", "--labelme").exit_code == 0
    result = bench("data", "check", "out/labelme", "--labels", "out/labelme/labels.txt")
    assert result.exit_code == 0
    assert "0 problems" in result.stdout


@pytest.mark.parametrize(
    ("number", "chosen"), [(1, ["doubtful"]), (2, ["doubtful", "fair"]), (3, ["doubtful", "fair", "good"])]
)
def test_only_the_photos_that_the_model_is_least_sure_of_are_kept_the_least_sure_first(photos, bench, number, chosen):
    result = bench("predict", "m.safetensors", "photos", "--out", "out", "--labelme", "--worst", number)
    assert result.exit_code == 0
    expected = read_expected(result.stdout)
    assert list(expected) == chosen
    assert list(expected.values()) == sorted(expected.values())
    assert list_masks() == sorted(chosen)
    assert sorted(path.stem for path in Path("out/labelme").glob("*.json")) == sorted(chosen)


def test_more_of_the_worst_than_there_are_photos_are_all_of_them(photos, bench):
    result = bench("predict", "m.safetensors", "photos", "--out", "out", "--worst", "99")
    assert result.exit_code == 0
    expected = read_expected(result.stdout)
    assert list(expected) == ["doubtful", "fair", "good", "sure"]
    assert expected["doubtful"] < 0.6 and expected["sure"] == 1.0


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_number_of_the_worst_that_is_none_is_refused(photos, bench, number):
    assert bench("predict", "m.safetensors", "photos", "--out", "out", "--worst", number).exit_code == 2
    assert not Path("out").exists()


@pytest.mark.parametrize("flags", [(), ("--worst", "2"), ("--worst", "9", "--labelme")])
def test_photos_that_cannot_be_read_are_listed_after_the_others_were_done(photos, bench, flags):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    result = bench("predict", "m.safetensors", "gone.png", "photos", "--out", "out", *flags)
    assert result.exit_code == 2
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["gone.png", "photos/broken.jpg"]
    assert list_masks() == (
        ["doubtful", "fair"] if flags[:2] == ("--worst", "2") else ["doubtful", "fair", "good", "sure"]
    )


def test_model_in_a_file_is_read_and_predicts(tmp_path, monkeypatch, photos, bench):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    model = make_unet(CARD.unet, seed=0)
    with torch.no_grad():
        model.head.bias.fill_(100)  # cats everywhere
    Path("best.safetensors").write_bytes(dump_model(model, CARD))
    result = bench("predict", "best.safetensors", "photos/fair.png", "--out", "out", "--labelme", "--worst", "1")
    assert result.exit_code == 0
    assert result.stdout.startswith("photos/fair.png: expected IoU 1.00, cat on 100.0% of it -> out/fair.png ")
    (shape,) = json.loads(Path("out/labelme/fair.json").read_text())["shapes"]
    assert sorted(shape["points"]) == [[0, 0], [0, 47], [63, 0], [63, 47]]
