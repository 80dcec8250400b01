"""A view for MLflow's page of runs: opened by a link, it has the columns, the order and the charts that a grid needs.

In:  the settings that vary.   Out: a saved view, as MLflow's pages keep them in an experiment's tag.
Knows nothing of MLflow's client, of runs or of their values.

Left alone, the page shows no setting and no score, the latest run first, and the charts by the alphabet, costs at
the top. The format is not documented: it is what the pages of MLflow 3.17 write under "Save as new view". Pages that
do not know it open as if there were none.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

VIEW = "bench"  # its name, and its key in links
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
SECTIONS = ("settings", "val", "overlays", "train", "test", "cost")  # in this order; MLflow fills in the other charts
COLUMNS = ("metrics.`val/best_miou`", "metrics.`cost/train_seconds`", "metrics.`cost/peak_mib`")
NUM_SHOWN = 4  # photos in the image grid
NUM_AXES = 5  # settings that a chart has room for


def format_view(varying: Sequence[str]) -> str:
    """The tag's value: best runs first, with their settings, scores and costs; charts of scores above all others."""
    settings = [name for name in varying if name != "seed"]
    state = {
        "searchFilter": "",
        "orderByKey": "metrics.`val/best_miou`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*(f"params.`{name}`" for name in varying), *COLUMNS, "attributes.`Dataset`"],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunSections": [{"uuid": name, "name": name, "display": True, "isReordered": True} for name in SECTIONS],
        "compareRunCharts": _list_charts(settings[:NUM_AXES]),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    # the times are nobody's: the same view is the same text
    return json.dumps({"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def is_kept_by_others(view: str) -> bool:
    """Whether somebody has saved a view of their own over ours."""
    try:
        return bool(json.loads(view)["updatedAt"])
    except (ValueError, TypeError, KeyError):
        return False


def _list_charts(settings: list[str]) -> list[dict[str, Any]]:
    """Those that are to come first in their sections, or that MLflow would not make by itself."""
    parallel = {
        "type": "PARALLEL",
        "metricSectionId": "settings",
        "selectedParams": settings,
        "selectedMetrics": ["val/best_miou"],
        "showAllRuns": True,
    }
    charts: list[dict[str, Any]] = [
        *([parallel] if settings else []),
        {"type": "BAR", "metricSectionId": "settings", "metricKey": "val/best_miou", "displayName": "val/best_miou"},
        {
            "type": "SCATTER",
            "metricSectionId": "settings",
            "xaxis": {"key": "cost/train_seconds", "type": "METRIC"},
            "yaxis": {"key": "val/best_miou", "type": "METRIC"},
        },
        _make_lines("val", "miou"),
        _make_lines("val", "loss"),
        *(
            {
                "type": "IMAGE",
                "metricSectionId": "overlays",
                "imageKeys": [f"overlays/{number:02d}"],
                "step": 0,
                "showRunParams": False,  # the line of settings would make each picture as wide as the page
            }
            for number in range(1, NUM_SHOWN + 1)
        ),
        _make_lines("train", "loss"),
    ]
    common: dict[str, Any] = {"runsCountToCompare": 10, "deleted": False, "isGenerated": True}
    return [common | {"uuid": f"bench-{number}"} | chart for number, chart in enumerate(charts)]


def _make_lines(section: str, name: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricSectionId": section,
        "displayName": name,
        "metricKey": f"{section}/{name}",
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
