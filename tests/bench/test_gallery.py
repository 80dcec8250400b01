"""Which photos a page shows, and what the journal's models see in them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.curves import Curves, compute_iou, load_curves
from bench.gallery import choose_photos, decode_labels, encode_labels, make_gallery

FOLDER = Path("mlruns/journal/tiny")


@pytest.fixture
def look(finished_copy, read_board):
    """look(): the gallery of the finished grid in the working folder."""

    def make():
        board = read_board(FOLDER)
        return make_gallery(FOLDER, board, load_curves(FOLDER, board, 100))

    return make


def test_photos_for_all_are_spread_from_hard_to_easy_and_the_worst_are_the_best_settings_own():
    iou_AN = np.array([[0.9, 0.1, 0.5, np.nan, *np.linspace(0.2, 0.8, 20)]] * 2)
    iou_AN[0, 4] = 0.0
    same, worst = choose_photos(Curves(({}, {}), tuple(map(str, range(24))), iou_AN))
    means = [iou_AN[:, index].mean() for index in same]
    assert (len(same), means, same[0], same[-1]) == (8, sorted(means), 1, 0)
    assert np.abs(np.diff(means)).max() < 0.2
    assert worst[:2] == [4, 1]
    assert 3 not in same + worst


def test_few_photos_are_all_shown_and_none_twice():
    same, worst = choose_photos(Curves(({},), ("a", "b", "c"), np.array([[0.3, 0.1, 0.2]])))
    assert (same, worst) == ([1, 2, 0], [1, 2, 0])
    assert choose_photos(Curves((), (), np.empty((0, 0)))) == ([], [])


def test_iou_of_a_photo_is_the_mean_over_the_classes_in_it():
    assert compute_iou([[2, 1, 1], [0, 5, 0]]) == 0.5
    assert compute_iou([[2, 1, 1], [1, 0, 0]]) == 0.75
    assert math.isnan(compute_iou([[0, 7, 0]]))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 255], [0, 3, 2], [0, 9], [0]])
def test_labels_survive_their_picture(labels):
    labels_HW = np.random.default_rng(0).choice(np.array(labels, np.uint8), (13, 9))
    np.testing.assert_array_equal(decode_labels(encode_labels(labels_HW)), labels_HW)


def test_a_map_of_one_class_is_tiny():
    labels_HW = np.zeros((192, 256), np.uint8)
    labels_HW[40:90, 50:150] = 1
    assert len(encode_labels(labels_HW)) < 200


def test_the_models_of_the_journal_see_what_its_counts_say(look, finished_copy):
    gallery = look()
    assert (gallery.missing, len(gallery.photos), len(gallery.seen)) == ("", 4, 2)
    (folder,) = FOLDER.glob("lr=0.03-*")
    counts = json.loads((folder / "per_photo.json").read_text())["counts_per_class"]
    best = gallery.seen[0]
    for photo, png, iou in zip(gallery.photos, best.pngs, best.ious, strict=True):
        truth_HW, seen_HW = decode_labels(photo.truth_png) == 1, decode_labels(png) == 1
        found = [(truth_HW & seen_HW).sum(), (~truth_HW & seen_HW).sum(), (truth_HW & ~seen_HW).sum()]
        assert [found] == counts[photo.name]  # 40 x 40 pixels are shown as they are
        assert iou == compute_iou(counts[photo.name])


def test_photos_that_were_held_out_are_found_in_the_training_folder(look):
    for path in FOLDER.glob("*/settings.json"):
        content = json.loads(path.read_text())
        content["data"] |= {"train": "val", "val": None}
        path.write_text(json.dumps(content))
    assert (look().missing, len(look().photos)) == ("", 4)


def test_photos_that_are_gone_are_told(look, finished_copy):
    (finished_copy / "val").rename(finished_copy / "elsewhere")
    gallery = look()
    assert (gallery.photos, gallery.seen) == ((), ())
    assert "val: no such folder" in gallery.missing


def test_one_photo_that_is_gone_is_told(look, finished_copy):
    for path in (finished_copy / "val").glob("cat2.*"):
        path.unlink()
    assert look().missing == "val: cat2 is not there any more"


def test_other_masks_by_the_same_names_are_told(look, finished_copy, write_photos):
    path = finished_copy / "val" / "cat1.json"
    content = json.loads(path.read_text())
    content["shapes"][0]["points"][0][0] += 1
    path.write_text(json.dumps(content))
    assert look().missing == "cat1: not the mask that the settings were validated on"


def test_other_photos_by_the_same_names_are_told(look, finished_copy):
    for path in (finished_copy / "val").glob("*.png"):
        Image.new("RGB", (40, 40), "black").save(path)
    assert look().missing.startswith("not the photos that the settings were validated on")


def test_a_model_that_is_gone_leaves_a_gap(look):
    (path,) = FOLDER.glob("lr=0.0001-*/best.safetensors")
    path.write_bytes(b"x" * path.stat().st_size)
    gallery = look()
    assert (gallery.seen[1], len(gallery.seen[0].pngs)) == (None, 4)


def test_curves_are_folded_over_the_seeds(finished_copy, read_board):
    board = read_board(FOLDER)
    curves = load_curves(FOLDER, board, 1)
    assert (len(curves.bands), curves.iou_AN.shape) == (1, (1, 4))
    band = curves.bands[0]["val/miou"]
    assert band.epochs == tuple(range(1, 9))
    assert band.lows == band.means == band.highs  # one seed
    assert max(band.means) == board.rows[0].mious[0]
