"""What other tools would print: each number against the tool itself, on random masks, empty photos and void."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from bench.definitions import average, list_definitions, make_definitions_table
from catseg.metrics import compute_metrics, count_pixels
from catseg.photo import VOID, count_valid_pixels

SIDE = 4


@st.composite
def draw_photos(draw, num_classes=1):
    """(labels, masks) of up to five photos: blank ones, void ones and full ones among them."""
    num = draw(st.integers(1, 5))
    classes = st.integers(0, num_classes)
    labels = st.one_of(arrays(np.uint8, (SIDE, SIDE), elements=classes), st.just(np.zeros((SIDE, SIDE), np.uint8)))
    truth = classes | st.just(VOID)
    masks = st.one_of(arrays(np.uint8, (SIDE, SIDE), elements=truth), st.just(np.zeros((SIDE, SIDE), np.uint8)))
    return [draw(labels) for _ in range(num)], [draw(masks) for _ in range(num)]


def count(labels, masks, num_classes=1):
    pairs = zip(labels, masks, strict=True)
    counts = [count_pixels(torch.tensor(label), torch.tensor(mask), num_classes).numpy() for label, mask in pairs]
    return np.stack(counts), count_valid_pixels(masks)


def find(definitions, start):
    (found,) = [definition for definition in definitions if definition.name.startswith(start)]
    return found


def list_valid(labels, masks):
    """(prediction, truth) of each photo as torch takes them, one photo in a batch, void left out."""
    for label, mask in zip(labels, masks, strict=True):
        valid = mask != VOID
        yield torch.tensor(label[valid][None].astype(np.int64)), torch.tensor(mask[valid][None].astype(np.int64))


def assert_same(definition, theirs):
    """Their sums are in single precision; what is undefined is nan there."""
    theirs = float(theirs)
    assert definition.value == pytest.approx(None if np.isnan(theirs) else theirs, abs=1e-6), definition.name


@pytest.fixture(scope="module")
def smp():
    """segmentation-models-pytorch's metrics alone: the package as a whole wants torchvision."""
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None:
        pytest.skip("segmentation-models-pytorch is not installed")
    (folder,) = found.submodule_search_locations
    spec = importlib.util.spec_from_file_location("smp_metrics", f"{folder}/metrics/functional.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- against the tools ---------------------------------------------------------------------------------------------


@given(draw_photos())
def test_ours_are_those_of_every_epoch(photos):
    counts_NK3, pixels_N = count(*photos)
    metrics = compute_metrics(counts_NK3)
    for name, definition in zip(
        ("miou", "miou_per_photo", "dice"), list_definitions(counts_NK3, pixels_N, "test"), strict=False
    ):
        assert definition.name == f"test/{name}"
        assert_same(definition, metrics.get(name, np.nan))


@given(draw_photos(num_classes=3))
def test_ours_of_several_classes_are_those_of_every_epoch(photos):
    counts_NK3, pixels_N = count(*photos, 3)
    metrics = compute_metrics(counts_NK3)
    definitions = list_definitions(counts_NK3, pixels_N)
    assert_same(definitions[0], metrics.get("miou", np.nan))
    assert_same(definitions[1], metrics.get("miou_per_photo", np.nan))
    assert metrics.get("dice") is None or definitions[2].value == pytest.approx(metrics["dice"])


def get_smp_stats(smp, labels, masks, num_classes=1):
    """smp knows no void for binary masks: such pixels are called background in both, which leaves its counts alone."""
    truth = torch.tensor(np.stack([np.where(mask == VOID, 0, mask) for mask in masks]).astype(np.int64))
    guess = torch.tensor(
        np.stack([np.where(m == VOID, 0, label) for label, m in zip(labels, masks, strict=True)]).astype(np.int64)
    )
    classes = torch.arange(1, num_classes + 1)[None, :, None, None]
    return smp.get_stats((guess[:, None] == classes).long(), (truth[:, None] == classes).long(), mode="multilabel")


@given(photos=draw_photos())
def test_smp_would_print_for_one_class_what_we_say(smp, photos):
    definitions = list_definitions(*count(*photos))
    stats = get_smp_stats(smp, *photos)
    for reduction in ("micro", "micro-imagewise"):
        assert_same(find(definitions, f'iou_score(reduction="{reduction}")'), smp.iou_score(*stats, reduction))
    assert not [definition for definition in definitions if '"macro"' in definition.name]
    if definitions[0].value is not None:
        assert_same(definitions[0], smp.iou_score(*stats, "macro"))
        assert_same(definitions[2], smp.f1_score(*stats, "micro"))


@given(photos=draw_photos(num_classes=3))
def test_smp_would_print_for_several_classes_what_we_say(smp, photos):
    definitions = list_definitions(*count(*photos, 3))
    stats = get_smp_stats(smp, *photos, 3)
    for reduction in ("micro", "macro", "micro-imagewise"):
        assert_same(find(definitions, f'iou_score(reduction="{reduction}")'), smp.iou_score(*stats, reduction))


@given(draw_photos())
def test_torchmetrics_would_print_for_one_class_what_we_say(photos):
    from torchmetrics import F1Score, JaccardIndex

    definitions = list_definitions(*count(*photos))
    labels, masks = (torch.tensor(np.stack(each).astype(np.int64)) for each in photos)
    binary = JaccardIndex(task="binary", ignore_index=VOID)
    assert_same(find(definitions, 'JaccardIndex(task="binary")'), binary(labels, masks))
    multiclass = JaccardIndex(task="multiclass", num_classes=2, ignore_index=VOID)
    assert_same(find(definitions, 'JaccardIndex(task="multiclass"'), multiclass(labels, masks))
    if definitions[2].value is not None:
        assert_same(definitions[2], F1Score(task="binary", ignore_index=VOID)(labels, masks))


@given(draw_photos())
def test_torchmetrics_per_image_would_print_for_one_class_what_we_say(photos):
    from torchmetrics.segmentation import MeanIoU

    definitions = list_definitions(*count(*photos))
    together, foreground = (MeanIoU(2, include_background=each, input_format="index") for each in (True, False))
    for label, mask in list_valid(*photos):
        if mask.numel():  # it knows no void, and no photo of nothing else
            together.update(label, mask)
            foreground.update(label, mask)
    if together.update_count:
        assert_same(find(definitions, 'segmentation.MeanIoU(2, input_format="index")'), together.compute())
        assert_same(find(definitions, "segmentation.MeanIoU(2, include_background=False"), foreground.compute())


@given(draw_photos(num_classes=3))
def test_torchmetrics_without_background_would_print_for_several_classes_what_we_say(photos):
    from torchmetrics.segmentation import MeanIoU

    metric = MeanIoU(4, include_background=False, input_format="index")
    for label, mask in list_valid(*photos):
        if mask.numel():
            metric.update(label, mask)
    if metric.update_count:
        definitions = list_definitions(*count(*photos, 3))
        assert_same(find(definitions, "segmentation.MeanIoU(4, include_background=False"), metric.compute())


# --- by hand -------------------------------------------------------------------------------------------------------

# Of 16 valid pixels each: 2 of 5 hit; nothing there and nothing found; a false alarm of 4.
COUNTS_NK3 = np.array([[[2, 1, 2]], [[0, 0, 0]], [[0, 4, 0]]])
PIXELS_N = np.array([16, 16, 16])


def test_three_photos_counted_by_hand_have_as_many_scores_as_there_are_tools():
    values = {definition.name: definition.value for definition in list_definitions(COUNTS_NK3, PIXELS_N)}
    background = (11 + 16 + 12) / (14 + 16 + 16)
    assert values == pytest.approx(
        {
            "val/miou": 2 / 9,
            "val/miou_per_photo": 2 / 5,
            "val/dice": 4 / 11,
            'iou_score(reduction="micro")': 2 / 9,
            'iou_score(reduction="micro-imagewise")': (2 / 5 + 1 + 0) / 3,
            'JaccardIndex(task="binary")': 2 / 9,
            'JaccardIndex(task="multiclass", num_classes=2)': (2 / 9 + background) / 2,
            'segmentation.MeanIoU(2, input_format="index")': (2 / 5 + 11 / 14 + 1 + 0 + 12 / 16) / 5,
            'segmentation.MeanIoU(2, include_background=False, input_format="index")': (2 / 5 + 0) / 2,
            "IoU of the background": background,
            "mIoU with background": (2 / 9 + background) / 2,
        }
    )


NEED_BACKGROUND = {
    'JaccardIndex(task="multiclass"',
    'segmentation.MeanIoU({}, input_format="index")',
    "IoU of the background",
    "mIoU with background",
}


@pytest.mark.parametrize(("num_classes", "says"), [(1, "not kept"), (2, "not from these counts")])
def test_what_needs_the_background_is_said_to_be_missing(num_classes, says):
    pixels_N = PIXELS_N if num_classes > 1 else None
    definitions = list_definitions(COUNTS_NK3.repeat(num_classes, 1), pixels_N)
    lacking = [definition for definition in definitions if definition.value is None]
    names = {name.format(num_classes + 1) for name in NEED_BACKGROUND}
    assert all(definition.name.startswith(tuple(names)) and definition.why_not == says for definition in lacking)
    assert len(lacking) == len(names)


def test_seeds_are_averaged_and_what_one_lacks_is_lacking():
    other = COUNTS_NK3.copy()
    other[0] = [[5, 0, 0]]
    mean = average([list_definitions(COUNTS_NK3, PIXELS_N), list_definitions(other, PIXELS_N)])
    assert mean[0].value == pytest.approx((2 / 9 + 5 / 9) / 2)
    lacking = average([list_definitions(COUNTS_NK3, PIXELS_N), list_definitions(other, None)])
    assert lacking[0].value == mean[0].value
    assert find(lacking, "IoU of the background").why_not == "not kept"


@pytest.mark.parametrize("pixels_N", [PIXELS_N, None])
def test_the_table_shows_every_number_its_name_and_its_owner_in_eighty_columns(pixels_N):
    text = io.StringIO()
    Console(file=text, width=80).print(make_definitions_table(list_definitions(COUNTS_NK3, pixels_N)))
    lines = text.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = "".join(text.getvalue().split())
    for word in ("0.222", "0.467", "val/miou", "JaccardIndex", "torchmetrics", "segmentation-models-pytorch"):
        assert word in words
    assert ("not" in [line.split()[0] for line in lines if line.split()]) == (pixels_N is None)
