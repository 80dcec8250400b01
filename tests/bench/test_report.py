"""The page of a comparison, read by a real browser that has no network, and what it is made of."""

import json
import math
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.compare import make_leaderboard
from bench.curves import Band, Curves
from bench.gallery import Gallery, Photo, Seen, encode_labels
from bench.page import format_verdict, make_leaderboard_table
from bench.report import dump_json, find_front, make_report, read_question, write_report
from bench.trial import TrialResult
from catseg.errors import InputError
from catseg.photo import encode_png
from catseg.sample import draw_photo
from tests.leaderboards import finish
from tests.leaderboards import make_board as make_small_board

NUM_PHOTOS = 40
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>&amp;\u2028{{data}} ${1}"


def make_environment(machine):
    facts = {"gpu": "none", "threads": "2", "torch": "2.13.0", "catseg": "0.1.0", "git_commit": "a" * 40}
    return facts | {"cpu": f"CPU {machine}", "machine_fingerprint": machine}


def make_results(num_settings=4, num_seeds=2, machines=("one",), text="dice"):
    """Results, the better the wider, and their counts."""
    rng, results, counts = np.random.default_rng(0), [], {}
    for number in range(num_settings):
        for seed in range(num_seeds):
            settings = {
                "init_features": 2 + number // 2,
                "loss": text if number % 2 else "bce",
                "epochs": 3,
                "seed": seed,
            }
            hits_N = rng.integers(400, 500, NUM_PHOTOS) + 1000 * (2 + number) // (num_settings + 2)
            counts_N13 = np.stack([hits_N, *rng.integers(100, 300, (2, NUM_PHOTOS))], axis=-1)[:, None]
            total = counts_N13.sum((0, 1))
            metrics = {"val/miou": float(total[0] / total.sum()), "cost/train_seconds": 10.0 + number + seed}
            metrics |= {"cost/photos_per_second": 100.0 - number, "cost/peak_mib": 300.0, "cost/parameters": 1e4}
            key, machine = f"{number:03d}{seed}", machines[number % len(machines)]
            result = TrialResult(
                key, f"trial {key}", settings, "finished", metrics, 2, None, "", make_environment(machine), "abc"
            )
            results.append(result)
            counts[key] = counts_N13.astype(np.int64)
    return results, counts


def make_board(**options):
    return make_leaderboard(*make_results(**options))


def make_curves(board, name="photo"):
    band = Band((1, 2, 3), (0.1, 0.2, 0.4), (0.05, 0.1, 0.3), (0.2, 0.3, 0.5))
    bands = tuple({"val/miou": band, "val/loss": band, "train/loss": band} for _ in board.rows)
    ious = np.random.default_rng(1).random((len(board.rows), NUM_PHOTOS))
    ious[:, 3] = math.nan
    return Curves(bands, tuple(f"{name} {number}" for number in range(NUM_PHOTOS)), ious)


def make_gallery(board, num_photos=12, name="photo"):
    photos, truths = [], []
    for number in range(num_photos):
        photo_HW3, mask_HW = draw_photo(number)
        truths.append(mask_HW)
        height, width = mask_HW.shape
        photos.append(Photo(f"{name} {number}", width, height, encode_png(photo_HW3), encode_labels(mask_HW)))
    seen = [
        Seen(
            0, tuple(encode_labels(np.roll(truth * (truth == 1), row % 40, 1)) for truth in truths), (0.5,) * num_photos
        )
        for row in range(len(board.rows))
    ]
    return Gallery(tuple(photos), tuple(range(min(8, num_photos))), tuple(range(num_photos))[-4:], tuple(seen))


@pytest.fixture(scope="session")
def open_page(chromium):
    """open_page(path, **options): the page from disk without a network, drawn whole, and what went wrong on it."""
    contexts = []

    def open_it(path, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.problems, page.requests = [], []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url[:60]))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return page

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory):
    """Four settings, two seeds, twelve photos."""
    path, board = tmp_path_factory.mktemp("page") / "page.html", make_board()
    write_report(path, "cats", "Is wider better?", board, make_curves(board), make_gallery(board), 96)
    return open_page(path, viewport={"width": 1280, "height": 900})


def read_column(page, name):
    heads = page.locator("#leaderboard thead th").all_inner_texts()
    (column,) = [number for number, head in enumerate(heads, 1) if head.strip(" ▲▼") == name]
    return page.locator(f"#leaderboard tbody tr td:nth-child({column})").all_inner_texts()


def is_painted(canvas):
    """Whether it has more than one colour."""
    return canvas.evaluate(
        "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size > 1"
    )


def test_the_page_needs_no_network_and_breaks_nothing(page):
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.title() == "cats"
    assert page.locator("h1").inner_text() == "Is wider better?"
    assert "is best with val/miou 0." in page.locator(".lead").inner_text()


def test_its_policy_lets_nothing_out(page):
    page.evaluate("fetch('file:///etc/hostname').catch(() => {})")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))")
    assert page.title() == "cats"
    assert any("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


def test_a_heading_sorts_by_click_and_by_keyboard(page):
    first = page.locator("#leaderboard thead th", has_text="training s")
    first.locator("button").click()
    values = [float(value) for value in read_column(page, "training s")]
    assert (first.get_attribute("aria-sort"), values) == ("descending", sorted(values, reverse=True))
    assert len(set(values)) > 1
    page.keyboard.press("Enter")  # it has the focus
    assert read_column(page, "training s") == [f"{value:.1f}" for value in sorted(values)]
    assert first.get_attribute("aria-sort") == "ascending"
    words = page.locator("#leaderboard thead th", has_text="loss")
    words.locator("button").focus()
    page.keyboard.press("Space")
    assert read_column(page, "loss") == ["bce", "bce", "dice", "dice"]
    assert page.locator("[aria-sort]").count() == 1


def test_every_chart_and_every_picture_is_drawn(page):
    plots = page.locator(".plot").all()
    assert len(plots) == 3 + 3 + 1 + 1  # fronts, curves, all settings, photo by photo
    for plot in plots:
        assert plot.locator(".trace path").count() > 0
        assert plot.bounding_box()["height"] > 200
    canvases = page.locator("canvas").all()
    assert len(canvases) == 8 * (2 + 4) + 4 * 4  # the same photos for every setting, the worst of the best
    assert all(is_painted(canvas) for canvas in canvases)
    assert all(canvas.get_attribute("aria-label") for canvas in canvases)


def test_no_chart_lies_upon_another(page):
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
            assert apart or one["y"] + one["height"] <= other["y"] + 1 or other["y"] + other["height"] <= one["y"] + 1


def test_a_picture_is_shown_large_by_keyboard_and_closed_by_escape(page):
    page.locator("#gallery button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#large[open] canvas[data-painted=errors]")
    assert page.locator("#large canvas").count() == 4
    assert "IoU 0.50" in page.locator("#large-title").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#large[open]").count() == 0


def test_the_errors_are_hits_misses_and_false_alarms(page):
    """The best setting's prediction is the truth itself, the second one's is moved by a pixel."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    truth_HW = draw_photo(0)[1]
    pixels_HW4 = np.array(page.locator("canvas[data-setting='1']").first.evaluate(read)).reshape(*truth_HW.shape, 4)
    grey = draw_photo(0)[0].mean(axis=2, keepdims=True)
    seen_HW = np.roll(truth_HW * (truth_HW == 1), 1, 1)
    for region, color in (
        ((truth_HW == 1) & (seen_HW == 1), (0, 158, 115)),
        ((truth_HW == 1) & (seen_HW == 0), (213, 94, 0)),
        ((truth_HW == 0) & (seen_HW == 1), (86, 180, 233)),
    ):
        assert region.any()
        expected = (0.4 * grey + 0.6 * np.array(color))[region]
        assert np.abs(pixels_HW4[..., :3][region] - expected).max() < 1.5


def test_two_settings_are_laid_against_each_other_photo_by_photo(page):
    assert [page.locator(f"#{name}").input_value() for name in ("first", "second")] == ["0", "1"]
    before = page.locator("#scatter-words").inner_text()
    page.locator("#second").select_option("3")
    assert page.locator("#scatter-words").inner_text() != before
    dots = page.locator("#scatter .point").count()
    assert dots == NUM_PHOTOS - 1  # in one photo nothing occurs


def test_the_page_is_printed_and_drawn_for_the_screen_again(page):
    width = page.locator("#fronts svg.main-svg").first.bounding_box()["width"]
    assert len(page.pdf()) > 50_000
    assert page.locator("#fronts svg.main-svg").first.bounding_box()["width"] == pytest.approx(width, abs=2)
    assert page.problems == []


def test_nothing_is_wider_than_a_phone_in_the_dark(open_page, tmp_path):
    board = make_board(text="a_rather_long_word_for_the_name_of_a_loss_" * 2)
    write_report(tmp_path / "a.html", "cats", "Q" * 80, board, make_curves(board), make_gallery(board, 4))
    page = open_page(tmp_path / "a.html", viewport={"width": 390, "height": 844}, color_scheme="dark", is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert page.problems == []


def test_hostile_names_are_only_text(open_page, tmp_path):
    board = make_board(text=HOSTILE)
    failed = replace(board.rows[0].results[0], name=HOSTILE, status="failed", reason=HOSTILE, failure="crash")
    board = replace(board, failed=(failed,), machines={"one": HOSTILE})
    gallery = make_gallery(board, name=HOSTILE)
    write_report(tmp_path / "a.html", HOSTILE, HOSTILE, board, make_curves(board, HOSTILE), gallery)
    page = open_page(tmp_path / "a.html")
    assert (page.title(), page.problems) == (HOSTILE.replace("\u2028", "\u2028"), [])
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator("img, #board b b, a:not(.skip)").count() == 0
    assert page.locator("#second option").nth(0).text_content().count(HOSTILE) == 1
    assert page.locator("#gallery thead th").nth(1).text_content() == f"{HOSTILE} 0"
    assert "</script><img" in page.locator("#parallel").text_content().replace("\xa0", " ")
    without_data = replace(gallery, photos=(), same=(), worst=(), seen=(), missing=HOSTILE)
    write_report(tmp_path / "b.html", "cats", "?", board, make_curves(board), without_data)
    page = open_page(tmp_path / "b.html")
    assert (page.title(), page.locator("#missing").text_content(), page.problems) == ("cats", HOSTILE, [])


def test_a_hundred_settings_are_under_8_mb_and_soon_there(open_page, tmp_path):
    board = make_board(num_settings=100, num_seeds=3)
    path = tmp_path / "a.html"
    write_report(path, "cats", "?", board, make_curves(board), make_gallery(board))
    assert path.stat().st_size < 8_000_000
    start = time.monotonic()
    page = open_page(path)
    marks = page.evaluate("Object.fromEntries(performance.getEntriesByType('mark').map(m => [m.name, m.startTime]))")
    print(f"{path.stat().st_size:,} bytes; {marks}; all drawn after {time.monotonic() - start:.1f} s")
    assert marks["sortable"] < marks["interactive"] < 20_000
    assert page.locator("#gallery tbody tr").count() == 2 + 12
    page.locator("#more").click()
    assert page.locator("#gallery tbody tr").count() == 2 + 100
    page.wait_for_selector("#gallery tbody tr:last-child td:last-child canvas[data-painted]", timeout=120_000)
    assert page.locator("canvas:not([data-painted])").count() == 0
    assert page.problems == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_seeds": 1}, "One seed per setting: an order, not a comparison"),
        ({"num_settings": 1}, "nothing to compare it with"),
        ({"num_settings": 0}, "No trial has finished yet."),
    ],
)
def test_what_is_no_comparison_is_not_called_one(open_page, tmp_path, options, says):
    board = make_board(**options)
    gallery = make_gallery(board, 4) if board.rows else Gallery((), (), (), ())
    write_report(tmp_path / "a.html", "cats", "?", board, make_curves(board), gallery)
    page = open_page(tmp_path / "a.html")
    assert (page.problems, says in page.locator(".lead").inner_text()) == ([], True)
    assert page.locator("#leaderboard tbody tr").count() == len(board.rows)
    assert page.locator("#leaderboard .tied, #leaderboard .worse").count() == 0


def test_seconds_of_two_machines_stand_in_two_columns_and_two_charts(open_page, tmp_path):
    board = make_board(machines=("one", "two"))
    write_report(tmp_path / "a.html", "cats", "?", board, make_curves(board), make_gallery(board, 4))
    page = open_page(tmp_path / "a.html")
    first, second = read_column(page, "training s (A)"), read_column(page, "training s (B)")
    assert [sorted(column).count("\u2013") for column in (first, second)] == [2, 2]
    assert all((one == "\u2013") != (other == "\u2013") for one, other in zip(first, second, strict=True))
    assert "whose seconds do not compare: (A) CPU two" in page.locator("#board").inner_text()
    names = page.locator("#fronts figcaption").all_inner_texts()
    page.locator("#machine").select_option("1")
    assert all(
        before != now for before, now in zip(names, page.locator("#fronts figcaption").all_inner_texts(), strict=True)
    )
    assert page.problems == []


def test_one_sentence_says_what_is_best_and_what_cannot_be_told_from_it():
    board = make_board()
    best = board.rows[0]

    def judge(*ties):
        others = tuple(replace(row, is_tied=tie) for row, tie in zip(board.rows[1:], ties, strict=False))
        return format_verdict(replace(board, rows=(best, *others)))

    score = f"{best.score.value:.3f} ({best.score.low:.3f} to {best.score.high:.3f})"
    name = f"init_features={best.settings['init_features']}, loss={best.settings['loss']}"
    assert judge(True, True, False) == f"{name} is best with val/miou {score}; 2 of 3 others cannot be told from it."
    assert judge(False, False, False).endswith("; all 3 others are worse.")
    assert judge(np.False_, np.True_, None).endswith(
        "; 1 of 3 others cannot be told from it; 1 with one seed cannot be compared."
    )
    assert judge(True, True).endswith("; none of the 2 others can be told from it.")
    assert judge(True).endswith("; the other one cannot be told from it.")
    assert judge(False).endswith("; the other one is worse.")
    assert judge(None, None, None).startswith("Too few seeds: an order, no comparison. First in it is init_features")


def test_each_seed_is_seen_in_the_table():
    board = make_board()
    table = make_leaderboard_table(board)
    for row in board.rows:
        assert all(f">{miou:.3f}</span>" in table for miou in row.mious)


def test_a_setting_that_may_be_off_is_null_in_the_table_and_sorts_as_numbers_with_null_last():
    results = [finish(0.5, ema=None), finish(0.6, ema=0.99), finish(0.7, ema=0.9, deep_supervision=True)]
    board = make_small_board(results)
    table = make_leaderboard_table(board)
    assert '<td class="word" data-v="">null</td>' in table
    assert '<td class="number" data-v="0.99">0.99</td>' in table
    assert '<td class="word" data-v="true">true</td>' in table
    assert "First in it is ema=0.9, deep_supervision=true with" in format_verdict(board)
    assert "None" not in table


def test_the_front_is_what_nothing_beats_in_both():
    assert find_front([(1, 0.5), (2, 0.4), (3, 0.7), (2, 0.6), (3, 0.65), (9, 0.7)]) == [0, 3, 2]
    assert find_front([(1, 0.5), (1, 0.5)]) == [0]
    assert find_front([]) == []


def test_json_within_a_script_ends_no_script_and_has_no_nan():
    text = dump_json({"a": HOSTILE, "b": [math.nan, 1.5, np.float64(2)], "c": (None, True)})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"a": HOSTILE, "b": [None, 1.5, 2.0], "c": [None, True]}


def test_the_question_is_the_first_comment_of_the_experiment_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("# Does width pay?\n#   On street cats.\nexperiment: a  # not this\n# nor this\n")
    assert read_question(path) == "Does width pay? On street cats."
    path.write_text("experiment: a\n# too late\n")
    assert read_question(path) is None
    assert read_question(tmp_path / "nowhere") is None


def test_a_page_that_cannot_be_written_is_told_in_a_line(tmp_path):
    board = make_board(num_settings=1)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "no" / "a.html", "cats", "?", board, make_curves(board), Gallery((), (), (), ()))


def test_the_files_of_the_page_are_installed_with_the_package():
    root = Path(__file__).parents[2]
    installed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["bench"]
    named = re.findall(r'_read\("([^"]+)"\)', (root / "bench/report.py").read_text())
    assert sorted(installed) == sorted(set(named))
    assert all((root / "bench" / name).is_file() for name in named)


def test_a_finished_experiment_becomes_a_page(finished, tmp_path, monkeypatch, open_page, read_board):
    monkeypatch.chdir(finished)
    folder = Path("mlruns/journal/tiny")
    make_report(folder, read_board(folder), tmp_path / "a.html")
    page = open_page(tmp_path / "a.html")
    assert page.problems == []
    assert page.locator("h1").inner_text() == "tiny: which lr is best?"
    assert "lr=1e+30: nonfinite" in page.locator("main").inner_text()
    assert page.locator("#gallery tbody tr").count() == 2 + 2
    assert "8 to train, 4 to validate" in page.locator("#facts").inner_text()
