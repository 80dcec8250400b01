"""`bench run` on photos that stand in two sets: it warns, early and late; its own hold-out keeps them together."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from catseg.dataset import DataConfig, load_data

TRIAL = {"grid": "loss: [dice]", "base": "{init_features: 2, image_size: 32, epochs: 1, batch_size: 4}"}


@pytest.fixture
def cats(tracked_workplace, write_labelme_folder):
    """A workplace with five drawn cats in `cats` and three others in `val`."""
    write_labelme_folder(tracked_workplace / "cats", num=8)
    (tracked_workplace / "val").mkdir()
    for number in (5, 6, 7):
        for suffix in (".jpg", ".json"):
            (tracked_workplace / f"cats/cat-{number}{suffix}").rename(tracked_workplace / f"val/cat-{number}{suffix}")
    return tracked_workplace


def mirror(source: Path, target: Path) -> None:
    """The photo mirrored, with an annotation that fits."""
    with Image.open(source) as image:
        ImageOps.mirror(image).save(target, quality=95)
        width = image.width
    annotation = json.loads(source.with_suffix(".json").read_text()) | {"imagePath": target.name}
    for shape in annotation["shapes"]:
        shape["points"] = [[width - 1 - x, y] for x, y in shape["points"]]
    target.with_suffix(".json").write_text(json.dumps(annotation))


def find_warnings(output: str) -> list[int]:
    """The numbers of the lines that warn."""
    return [number for number, line in enumerate(output.splitlines()) if line.startswith("Leaks: ")]


def test_mirrored_photo_in_both_sets_is_named_before_the_training_and_under_the_scores(cats, write_grid, bench):
    mirror(cats / "cats/cat-2.jpg", cats / "val/mirrored.jpg")
    result = bench("run", "--grid", write_grid(data="{train: cats, val: val}", **TRIAL))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    early, late = find_warnings(result.stdout)
    assert lines[early] == lines[late]
    assert lines[early].startswith("Leaks: 1 ")
    assert "train cat-2 = val mirrored" in lines[early]
    assert "bench data check" in lines[early]
    assert ", ..." not in lines[early]
    (described,) = (number for number, line in enumerate(lines) if line.startswith("tiny: 1 trials, 0 done"))
    scored = [number for number, line in enumerate(lines) if "miou" in line]
    assert described < early < min(scored) <= max(scored) < late


def test_sets_without_a_photo_in_common_have_no_such_line(cats, write_grid, bench):
    result = bench("run", "--grid", write_grid(data="{train: cats, val: val}", **TRIAL))
    assert result.exit_code == 0
    assert find_warnings(result.stdout) == []


def test_plan_names_the_leaks_too_and_no_more_than_three_of_many(cats, write_grid, bench):
    for number in range(4):
        mirror(cats / f"cats/cat-{number}.jpg", cats / f"val/mirrored-{number}.jpg")
    result = bench("plan", "--grid", write_grid(data="{train: cats, val: val}", **TRIAL))
    assert result.exit_code == 0
    (number,) = find_warnings(result.stdout)
    line = result.stdout.splitlines()[number]
    assert line.startswith("Leaks: 4 pairs of photos")
    assert (line.count(" = val mirrored-"), line.count(", ...")) == (3, 1)


def test_test_photos_leak_too(cats, write_grid, bench, write_labelme_folder):
    (cats / "test").mkdir()
    mirror(cats / "val/cat-6.jpg", cats / "test/mirrored.jpg")
    write_grid(data="{train: cats, val: val}", **TRIAL)
    result = bench("run", "--grid", "grid.yaml", "--test", "test")
    assert result.exit_code == 0
    early = find_warnings(result.stdout)[0]
    assert "val cat-6 = test mirrored" in result.stdout.splitlines()[early]


def test_photos_validated_on_those_that_were_trained_on_are_no_leak(cats, write_grid, bench):
    result = bench("run", "--grid", write_grid(data="{train: cats, val: train}", **TRIAL))
    assert result.exit_code == 0
    assert find_warnings(result.stdout) == []
    assert "Validated on the training photos" in result.stdout


@pytest.mark.parametrize("number", range(5))
def test_own_hold_out_keeps_a_photo_and_its_mirror_image_on_one_side(cats, number):
    mirror(cats / f"cats/cat-{number}.jpg", cats / "cats/mirrored.jpg")
    data = load_data(DataConfig(train="cats", val_fraction=0.4), [32])
    sides = [set(photos.names) & {f"cat-{number}", "mirrored"} for photos in data.sets[32]]
    assert sorted(map(len, sides)) == [0, 2]
    assert data.leaks == ()


def test_run_with_its_own_hold_out_has_nothing_to_warn_of(cats, write_grid, bench):
    mirror(cats / "cats/cat-2.jpg", cats / "cats/mirrored.jpg")
    result = bench("run", "--grid", write_grid(data="{train: cats}", **TRIAL))
    assert result.exit_code == 0
    assert find_warnings(result.stdout) == []


def test_fixtures_mirror_image_is_one(cats):
    mirror(cats / "cats/cat-2.jpg", cats / "val/mirrored.jpg")
    with Image.open(cats / "cats/cat-2.jpg") as image, Image.open(cats / "val/mirrored.jpg") as other:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(other)[:, ::-1]).mean() < 5
