"""Photos in, masks and overlays out: at the photo's own size, never over the photo."""

import errno
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catseg.checkpoint import ModelCard
from catseg.dataset import load_test_set
from catseg.errors import InputError
from catseg.inference import compute_logits, evaluate, make_predictor
from catseg.photo import fit_photo, read_photo
from catseg.predict import Prediction, estimate_files, estimate_iou, predict, write_predictions
from catseg.settings import UNetConfig
from catseg.unet import UNet, make_unet

CPU = torch.device("cpu")
CARD = ModelCard(UNetConfig(2), ("cat",), image_size=32, epoch=1)


def make_model(bias: float) -> UNet:
    """A U-Net that sees cats everywhere (bias 100) or nowhere (bias -100)."""
    model = make_unet(CARD.unet, seed=0)
    with torch.no_grad():
        model.head.bias.fill_(bias)
    return model


EVERYWHERE, NOWHERE = make_model(100.0), make_model(-100.0)


def make_brightness_model() -> torch.nn.Module:
    """Calls bright pixels cats: what it predicts is known."""
    model = torch.nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        model.weight.fill_(10.0)
        model.bias.fill_(-15.0)
    return model


def write_photo(path: Path, height: int = 37, width: int = 53) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 200, 200)).save(path)
    return path


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("height", "width"), [(37, 53), (53, 37), (32, 32), (5, 300), (301, 7), (1, 1), (640, 1024)])
def test_mask_and_overlay_have_the_photos_own_size(tmp_path, height, width):
    photo = write_photo(tmp_path / "photos" / "cat.png", height, width)
    out = tmp_path / "deep" / "out"
    (done,) = write_predictions(EVERYWHERE, CARD, [photo], out, CPU)
    assert done == Prediction(photo, out / "cat.png", out / "cat_overlay.png", annotation_path=None, share=1)
    assert list_files(out) == ["cat.png", "cat_overlay.png"]  # and no temporary file
    mask, overlay = open_image(done.mask_path), open_image(done.overlay_path)
    assert mask.size == overlay.size == (width, height)
    assert mask.mode == "P" and overlay.mode == "RGB"
    assert np.all(np.asarray(mask) == 1)


def test_mask_has_the_tutorials_palette(tmp_path):
    photo = write_photo(tmp_path / "cat.png")
    (done,) = write_predictions(EVERYWHERE, CARD, [photo], tmp_path / "out", CPU)
    mask = open_image(done.mask_path)
    assert mask.getpalette()[:6] == [0, 0, 0, 0, 128, 0]
    assert np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0).tolist() == [[0, 128, 0]]


@pytest.mark.parametrize(("model", "color"), [(EVERYWHERE, (140, 178, 140)), (NOWHERE, (140, 140, 140))])
def test_overlay_is_seven_tenths_photo_and_three_tenths_mask(tmp_path, model, color):
    photo = write_photo(tmp_path / "cat.png")  # 200, 200, 200
    (done,) = write_predictions(model, CARD, [photo], tmp_path / "out", CPU)
    overlay = np.asarray(open_image(done.overlay_path)).astype(int)
    np.testing.assert_allclose(overlay, np.broadcast_to(color, overlay.shape), atol=1)


def test_photo_in_which_nothing_is_found_has_an_empty_mask(tmp_path):
    photo = write_photo(tmp_path / "cat.png")
    (done,) = write_predictions(NOWHERE, CARD, [photo], tmp_path / "out", CPU)
    assert done.share == 0
    assert not np.asarray(open_image(done.mask_path)).any()


@pytest.mark.parametrize(("height", "width"), [(61, 93), (93, 61), (20, 150), (48, 48)])
def test_cat_is_predicted_where_it_is(height, width):
    photo = np.zeros((height, width, 3), np.uint8)
    photo[height // 2 :, width // 3 :] = 255
    labels = predict(make_predictor(make_brightness_model(), "auto", CPU), CARD, photo)
    wrong = labels != photo[..., 0] // 255
    pixel = max(1, max(height, width) / 32)
    assert labels.shape == (height, width)
    assert np.count_nonzero(wrong) <= pixel * (height + width) / 2 + 4
    assert labels[-1, -1] == 1 and labels[0, 0] == 0


def test_photo_turned_by_exif_is_predicted_as_it_is_shown(tmp_path):
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:10] = 255  # the upper edge, which is shown on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "cat.jpg", exif=exif)
    (done,) = write_predictions(make_brightness_model(), CARD, [tmp_path / "cat.jpg"], tmp_path / "out", CPU)
    mask = np.asarray(open_image(done.mask_path))
    assert mask.shape == (64, 40)
    assert np.all(mask[:, 33:] == 1) and not mask[:, :27].any()
    assert open_image(done.overlay_path).size == (40, 64)


def test_several_classes_are_written_as_their_label_ids(tmp_path):
    card = ModelCard(UNetConfig(2, num_classes=3), ("cat", "dog", "cow"), image_size=32, epoch=1)
    model = make_unet(card.unet, seed=0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([-1.0, 1.0, 2.0]))
    photo = write_photo(tmp_path / "cat.png")
    (done,) = write_predictions(model, card, [photo], tmp_path / "out", CPU)
    assert np.unique(np.asarray(open_image(done.mask_path))).tolist() == [3]


def test_network_in_training_mode_is_switched_to_eval_mode(tmp_path):
    model = make_unet(CARD.unet, seed=0).train()
    before = model.encoders[0][1].running_mean.clone()
    predict(make_predictor(model, "auto", CPU), CARD, np.zeros((40, 40, 3), np.uint8))
    assert torch.equal(model.encoders[0][1].running_mean, before)


def test_several_photos_are_predicted_in_the_order_given(tmp_path):
    photos = [write_photo(tmp_path / f"{name}.png") for name in ("b", "a.b", "a")]
    written = list(write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU))
    assert [done.photo_path for done in written] == photos
    assert list_files(tmp_path / "out") == [
        "a.b.png",
        "a.b_overlay.png",
        "a.png",
        "a_overlay.png",
        "b.png",
        "b_overlay.png",
    ]


def test_photos_that_cannot_be_read_do_not_stop_the_others_and_are_listed_at_the_end(tmp_path):
    photos = [tmp_path / "gone.jpg", write_photo(tmp_path / "cat.png"), tmp_path / "text.jpg"]
    photos[2].write_text("no photo")
    predictions, written = write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU), []
    with pytest.raises(InputError) as caught:
        written.extend(predictions)
    assert [done.photo_path.name for done in written] == ["cat.png"]
    assert ["gone.jpg" in line or "text.jpg" in line for line in caught.value.problems] == [True, True]
    assert list_files(tmp_path / "out") == ["cat.png", "cat_overlay.png"]


@pytest.fixture
def many_cores():
    """Four threads, however few cores the tests are given."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_photos_are_worked_on_several_at_a_time_and_come_in_the_order_given(tmp_path, monkeypatch, many_cores):
    """The first cannot be done before three others are: alone it would wait for ever."""
    photos = [write_photo(tmp_path / f"{index}.png") for index in range(9)]
    others = threading.Semaphore(0)

    def read_slowly(path: Path) -> np.ndarray:
        if path == photos[0]:
            for _ in range(3):
                assert others.acquire(timeout=30)
        else:
            others.release()
        return read_photo(path)

    monkeypatch.setattr("catseg.predict.read_photo", read_slowly)
    written = list(write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU))
    assert [done.photo_path for done in written] == photos
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("num_threads", [1, 4])
def test_masks_are_the_same_to_the_byte_whatever_is_predicted_beside_them(tmp_path, draw_cat, many_cores, num_threads):
    model = make_unet(CARD.unet, seed=1)
    photo_1SS3 = torch.tensor(fit_photo(draw_cat(0)[0], 32)).unsqueeze(0)
    with torch.no_grad():  # half of a photo is cat, its rim all over it
        model.head.bias -= compute_logits(make_predictor(model, "auto", CPU), photo_1SS3).median()
    photos = [tmp_path / f"{index}.png" for index in range(7)]
    for index, photo in enumerate(photos):
        Image.fromarray(draw_cat(index)[0]).save(photo)
    torch.set_num_threads(num_threads)
    list(write_predictions(model, CARD, photos, tmp_path / "all", CPU))
    torch.set_num_threads(4)
    for photo in photos:
        list(write_predictions(model, CARD, [photo], tmp_path / "alone", CPU))
    for name in list_files(tmp_path / "alone"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    masks = [np.asarray(open_image(tmp_path / "all" / photo.name)) for photo in photos]
    assert 0.01 < np.mean([mask.mean() for mask in masks]) < 0.99


@pytest.mark.parametrize("error", [GeneratorExit, KeyboardInterrupt])
def test_who_stops_waiting_leaves_whole_files_and_begins_no_more(tmp_path, many_cores, error):
    photos = [write_photo(tmp_path / "in" / f"{index:03}.png", 300, 400) for index in range(100)]
    predictions = write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU)
    assert next(predictions).photo_path == photos[0]
    with pytest.raises(error):
        predictions.throw(error)
    names = list_files(tmp_path / "out")
    stems = {name.removesuffix(".png").removesuffix("_overlay") for name in names}
    assert 2 <= len(names) == 2 * len(stems) < 200
    for name in names:
        assert open_image(tmp_path / "out" / name).size == (400, 300)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("photo")]


def test_disk_that_fills_up_stops_the_work_and_says_so(tmp_path, monkeypatch, refusal, many_cores):
    photos = [write_photo(tmp_path / f"{index:03}.png", 300, 400) for index in range(100)]
    saved = []

    def save_until_full(data: bytes, path: Path) -> None:
        if path.stem == "004":
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)

    monkeypatch.setattr("catseg.predict.save_bytes", save_until_full)
    line = refusal(list, write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU))
    assert "out: cannot be written (No space left on device)" in line
    assert 8 <= len(saved) < 150


def test_estimates_come_in_the_order_of_the_files_with_what_is_wrong_with_them(tmp_path, many_cores):
    photos = [write_photo(tmp_path / "a.png"), tmp_path / "gone.png", write_photo(tmp_path / "b.png")]
    first, problem, last = estimate_files(EVERYWHERE, CARD, photos, CPU)
    assert first == last == estimate_iou(make_predictor(EVERYWHERE, "auto", CPU), CARD, read_photo(photos[0]))
    assert "gone.png: no such file" in str(problem)


def test_existing_prediction_is_replaced(tmp_path):
    photo = write_photo(tmp_path / "cat.png")
    list(write_predictions(NOWHERE, CARD, [photo], tmp_path / "out", CPU))
    list(write_predictions(EVERYWHERE, CARD, [photo], tmp_path / "out", CPU))
    assert np.all(np.asarray(open_image(tmp_path / "out" / "cat.png")) == 1)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("names", [["cat.png"], ["dog.jpg", "cat.png"], ["cat.jpg", "cat_overlay.png"]])
def test_prediction_that_would_overwrite_a_photo_is_refused(tmp_path, refusal, names, linked):
    """Before anything is written; the photos' folder may also be reached by a link."""
    photos = [write_photo(tmp_path / "photos" / name) for name in names]
    before = [photo.read_bytes() for photo in photos]
    out = tmp_path / "photos"
    if linked:
        out = tmp_path / "link"
        out.symlink_to(tmp_path / "photos")
    line = refusal(list, write_predictions(EVERYWHERE, CARD, photos, out, CPU))
    assert "overwrite" in line and "--out" in line
    assert [photo.read_bytes() for photo in photos] == before
    assert list_files(tmp_path / "photos") == sorted(names)


def test_two_photos_with_one_name_are_refused_before_anything_is_written(tmp_path, refusal):
    photos = [write_photo(tmp_path / folder / "cat.png") for folder in ("a", "b")]
    line = refusal(list, write_predictions(EVERYWHERE, CARD, photos, tmp_path / "out", CPU))
    assert str(photos[0]) in line and str(photos[1]) in line
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_is_refused(tmp_path, refusal):
    photo = write_photo(tmp_path / "cat.png")
    (tmp_path / "out").touch()
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert str(out) in refusal(list, write_predictions(EVERYWHERE, CARD, [photo], out, CPU))


def test_tutorials_photos_are_predicted_at_their_own_size(tmp_path, real_data):
    folder = real_data / "tutorial-cats" / "JPEGImages"
    photos = sorted(folder.iterdir())
    written = list(write_predictions(EVERYWHERE, CARD, photos, tmp_path, CPU))
    assert len(written) == 8
    for done in written:
        height, width = read_photo(done.photo_path).shape[:2]
        assert open_image(done.mask_path).size == open_image(done.overlay_path).size == (width, height)
    assert len(list_files(tmp_path)) == 16


def test_prediction_agrees_with_what_validation_counts(tmp_path, write_voc_folder):
    """The same network and photo, scored in training and predicted from the file: the same pixels."""
    folder, model = write_voc_folder(tmp_path / "voc", num=1), make_brightness_model()
    photos, _ = load_test_set(str(folder), CARD.classes, CARD.image_size)
    with torch.no_grad():
        model.bias.fill_(-30 * photos.photo_NSS3.mean() / 255)
    _, counts = evaluate(model, photos, "dice", 1, "auto", CPU)
    labels = predict(make_predictor(model, "auto", CPU), CARD, read_photo(folder / "JPEGImages" / "cat-0.jpg"))
    true = photos.native_masks[0] == 1
    hits, predicted = np.count_nonzero(true & (labels == 1)), np.count_nonzero(labels)
    assert 0 < hits < predicted
    assert counts.tolist() == [[[hits, predicted - hits, np.count_nonzero(true) - hits]]]
