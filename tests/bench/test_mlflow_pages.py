"""What docs/mlflow.md says of MLflow's pages, looked at in a browser and asked of the store."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bench.store import make_ui_command
from tests.bench.conftest import BENCH

DOCS = Path(__file__).parents[2] / "docs"

# Two losses by two seeds, and a learning rate at which a trial cannot end well; the words that docs/mlflow.md uses.
GRID = """
experiment: tiny
data: {train: sample}
base: {init_features: 8, image_size: 32, epochs: 2, batch_size: 8}
grid: {loss: [dice, bce_dice], lr: [0.003, 1.0e+30]}
seeds: [0, 1]
"""
NUM_RUNS, NUM_FINISHED = 8, 4


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A folder in which `bench run` has run GRID. Read it, do not write there."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "grid.yaml").write_text(GRID)
    done = subprocess.run(
        [BENCH, "run", "--grid", "grid.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr  # some trials failed
    return folder


@pytest.fixture(scope="module")
def client(tracked, template_store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{tracked / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(client):
    return client.search_runs([client.get_experiment_by_name("tiny").experiment_id])


def list_documented_filters():
    table = (DOCS / "mlflow.md").read_text("utf-8").split("| filter | runs |")[1].split("\n\n")[0]
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


def select(run, documented):
    """Which runs a filter of the docs is to find, said another way."""
    data, info = run.data, run.info
    return {
        'params.loss = "dice"': data.params["loss"] == "dice",
        'params.loss = "dice" and params.lr = "0.003"': (data.params["loss"], data.params["lr"]) == ("dice", "0.003"),
        'metrics."val/best_miou" > 0.7': data.metrics.get("val/best_miou", 0) > 0.7,
        'tags.best = "true"': data.tags.get("best") == "true",
        'tags.setting = "dice 0.003 8"': info.run_name.startswith("dice 0.003 8"),
        'tags.grid = "grid.yaml"': True,
        'tags.failure_kind = "oom"': data.tags.get("failure_kind") == "oom",
        'attributes.status = "FAILED"': info.status == "FAILED",
        'dataset.name = "sample"': True,
    }[documented]


@pytest.mark.slow
@pytest.mark.parametrize("documented", list_documented_filters())
def test_each_filter_of_the_docs_finds_the_runs_that_they_say(client, runs, documented):
    found = client.search_runs([runs[0].info.experiment_id], documented)
    assert {run.info.run_id for run in found} == {run.info.run_id for run in runs if select(run, documented)}


@pytest.mark.slow
def test_what_the_docs_say_of_a_run_is_there(client, runs):
    assert len(runs) == NUM_RUNS
    finished = [run for run in runs if run.info.status == "FINISHED"]
    assert len(finished) == NUM_FINISHED
    assert sum(run.data.tags.get("best") == "true" for run in runs) == 1
    for run in finished:
        assert {"system/cpu_percentage", "cost/train_seconds", "val/best_miou"} <= run.data.metrics.keys()
        assert 0 < run.data.metrics["system/cpu_percentage"] < 100 * 1000
        assert re.search(r"rank \d of 2 settings, the mean of 2 seeds", run.data.tags["mlflow.note.content"])
        steps = {
            int(re.search(r"step\W(\d+)", file.path)[1]) for file in client.list_artifacts(run.info.run_id, "images")
        }
        assert steps == {0, 1, 2}


@pytest.fixture
def pages(tracked, runs, chromium, free_port, start_server, monkeypatch):
    """open(path): a page of MLflow's, as somebody sees it who has closed the assistant. No other host is asked."""
    monkeypatch.chdir(tracked)
    command, environment = make_ui_command(free_port)
    start_server(command, free_port, env=environment)
    context = chromium.new_context(viewport={"width": 2200, "height": 1000})
    context.add_init_script("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
    context.set_default_timeout(60_000)
    asked = set()
    page = context.new_page()
    page.on("request", lambda request: asked.add(request.url.partition("://")[2].partition("/")[0]))

    def open_page(path):
        page.goto("about:blank")
        page.goto(f"http://127.0.0.1:{free_port}/#/experiments/{runs[0].info.experiment_id}/{path}")
        return page

    yield open_page
    context.close()
    assert {host for host in asked if host} <= {f"127.0.0.1:{free_port}"}


VIEW = "workflowType=machine_learning&viewStateShareKey=bench"


@pytest.mark.slow
def test_the_list_shows_the_best_run_first_its_data_its_settings_and_the_leaderboard(pages, client, runs):
    page = pages(f"runs?{VIEW}")
    page.get_by_text(f"{NUM_RUNS} matching runs").wait_for()
    names = page.get_by_role("link", name=re.compile(r"^(bce_)?dice (0\.003|1e\+30) [01]$"))
    names.nth(NUM_RUNS - 1).wait_for()
    scores = {run.info.run_name: run.data.metrics.get("val/best_miou", -1.0) for run in runs}
    assert names.first.inner_text() == max(scores, key=scores.get)
    assert page.get_by_text(re.compile(r"^sample \([0-9a-f]{16}\)")).count() >= NUM_FINISHED
    for header in ("val/best_miou", "cost/train_seconds", "loss", "lr"):
        page.get_by_role("columnheader", name=header, exact=True).first.wait_for(state="attached")
    page.locator("[data-component-id='mlflow.experiment.metadata_editor.expand_button']").click()
    page.get_by_role("cell", name="best", exact=True).or_(page.locator("td", has_text=re.compile("^best$"))).wait_for()
    assert page.locator("table tbody tr").count() == 2  # a row for each setting that finished
    page.locator("li", has_text="FAILED").first.wait_for()
    assert page.locator("li", has_text="FAILED").count() == 4
    page.get_by_placeholder("metrics.rmse").fill('params.loss = "dice" and params.lr = "0.003"')
    page.keyboard.press("Enter")
    page.get_by_text("2 matching runs").wait_for()


@pytest.mark.slow
def test_the_charts_put_settings_and_scores_above_costs_and_the_grid_shows_every_runs_overlay(pages, tmp_path):
    page = pages(f"runs?compareRunsMode=CHART&{VIEW}")
    page.get_by_text("Parallel Coordinates").wait_for()
    page.set_viewport_size({"width": 1500, "height": 4000})
    tops = {}
    for section in ("settings", "val", "overlays", "train", "cost"):
        heading = page.get_by_text(section, exact=True).first
        heading.wait_for()
        tops[section] = heading.bounding_box()["y"]
    assert list(tops) == sorted(tops, key=tops.get)
    page.set_viewport_size({"width": 1500, "height": 1000})
    page.get_by_placeholder("Search metric charts").fill("overlays")
    title = page.get_by_text("overlays/01", exact=True).first
    title.locator("xpath=ancestor::*[.//button][1]").locator("button").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("img").nth(NUM_FINISHED - 1).wait_for()
    assert dialog.locator("img").count() >= NUM_FINISHED
    page.wait_for_timeout(2000)  # for the pictures to be drawn
    dialog.screenshot(path=tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        colours = image.convert("RGB").getcolors(image.width * image.height)
    assert len(colours) > 1000, "no photos to be seen"


@pytest.mark.slow
def test_the_compare_page_opens_with_the_settings_that_differ_and_the_score(pages, runs):
    finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    experiments = json.dumps([runs[0].info.experiment_id])
    page = pages("..").context.pages[0]
    url = page.url.partition("#")[0]
    page.goto(f"{url}#/compare-runs?runs={json.dumps(finished)}&experiments={experiments}")
    page.get_by_text("Parallel Coordinates Plot").wait_for()
    page.locator("svg .axis-title, svg .parcoords").first.wait_for(state="attached")
    chosen = page.locator(".ant-select-selection-item, [class*=select-selection-item]").all_inner_texts()
    assert set(map(str.strip, chosen)) - {""} == {"loss", "seed", "val/miou"}, chosen


def test_the_pictures_in_the_docs_are_few_and_small():
    pictures = [*DOCS.glob("mlflow_*.png"), *DOCS.glob("mlflow_*.jpg")]
    text = (DOCS / "mlflow.md").read_text("utf-8")
    assert {path.name for path in pictures} == set(re.findall(r"\]\((mlflow_\w+\.\w+)\)", text))
    assert sum(path.stat().st_size for path in pictures) < 600_000
