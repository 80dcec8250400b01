"""What the real Labelme (6.x) makes of files: a script, run in a process of its own, which prints JSON.

    labelme_window.py show PATH... [--pixels] [--save] [--grab]   what its window shows of folders and files
    labelme_window.py start ARGUMENT...                           `labelme ARGUMENT...`, up to its window
    labelme_window.py masks LABEL_IDS FILE...                     its converter's cls and ins, beside each file

In a process of its own, for Labelme switches off Pillow's guard against decompression bombs, and
Qt ends a process without a word. A dialog, which would wait for a click for ever, is noted and answered.
"""

import json
import sys
from pathlib import Path

import numpy as np
from labelme.app import MainWindow
from PyQt5 import QtWidgets

told: list[str] = []  # by dialogs


def answer_dialogs() -> None:
    """Every message box notes its text and gives its first button."""

    def note(_parent, title, text, *_buttons):
        told.append(f"{title}: {text}")
        return QtWidgets.QMessageBox.Ok

    for kind in ("critical", "warning", "question", "information", "about"):
        setattr(QtWidgets.QMessageBox, kind, staticmethod(note))
    QtWidgets.QMessageBox.show = lambda box: told.append(f"{box.text()}: {box.informativeText()}")


def describe(window: MainWindow) -> dict:
    """The photo and the shapes that are on the canvas now, and what dialogs told on the way."""
    canvas = window._canvas_widgets.canvas
    shapes = [
        {
            "label": shape.label,
            "shape_type": shape.shape_type,
            "group_id": shape.group_id,
            "points": [[point.x(), point.y()] for point in shape.points],
        }
        for shape in canvas.shapes
    ]
    view = {
        "photo": window._image_path,
        "width": canvas.pixmap.width(),
        "height": canvas.pixmap.height(),
        "shapes": shapes,
        "errors": told.copy(),
    }
    told.clear()
    return view


def show(paths: list[Path], flags: set[str]) -> list[dict]:
    """One view per photo; `--pixels`, `--grab`: NAME.shown.png, NAME.window.png; `--save`: saved by Labelme."""
    application = QtWidgets.QApplication(["labelme"])
    views = []
    for path in paths:
        window = MainWindow(config_overrides={"auto_save": False}, file_or_dir=str(path))
        window.show()
        files = window._docks.file_list
        for row in range(max(files.count(), 1)):
            files.setCurrentRow(row)  # what a click does; a file opened by itself has no list
            application.processEvents()
            views.append(describe(window))
            if views[-1]["errors"]:
                continue
            photo = Path(window._image_path)
            if "--pixels" in flags:
                window._image.save(str(photo.with_suffix(".shown.png")))
            if "--grab" in flags:
                window.grab().save(str(photo.with_suffix(".window.png")))
            if "--save" in flags:
                assert window.save_labels(window._label_file_path or str(photo.with_suffix(".json")))
        window.mark_clean()
        window.close()
    return views


def start(arguments: list[str]) -> dict:
    """Labelme's own main() up to the point where it would wait for clicks: the view, and the settings it took."""
    from labelme.__main__ import main

    seen: dict = {}

    def look() -> int:
        (window,) = (widget for widget in QtWidgets.QApplication.topLevelWidgets() if isinstance(widget, MainWindow))
        listed = window._docks.unique_label_list
        names = ("auto_save", "with_image_data", "sort_labels", "validate_label", "labels")
        seen.update(describe(window), config={name: window._config[name] for name in names}, num_listed=listed.count())
        return 0

    QtWidgets.QApplication.exec_ = staticmethod(look)
    sys.argv = ["labelme", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    return seen


def write_masks(label_ids: dict[str, int], paths: list[Path]) -> dict[str, str]:
    """NAME.cls.npy and NAME.ins.npy beside each file, as labelme2voc computes them; the errors by file."""
    from labelme import LabelFile
    from labelme.utils import img_data_to_arr, shapes_to_label

    errors = {}
    for path in paths:
        try:
            file = LabelFile(str(path))
            cls, ins = shapes_to_label(img_data_to_arr(file.image_data).shape, file.shapes, label_ids)
        except Exception as error:
            errors[str(path)] = f"{type(error).__name__}: {error}"
            continue
        np.save(path.with_suffix(".cls.npy"), cls)
        np.save(path.with_suffix(".ins.npy"), ins)
    return errors


def run(command: str, arguments: list[str]) -> object:
    answer_dialogs()
    if command == "show":
        flags = {argument for argument in arguments if argument.startswith("--")}
        return show([Path(argument) for argument in arguments if argument not in flags], flags)
    if command == "start":
        return start(arguments)
    return write_masks(json.loads(arguments[0]), [Path(argument) for argument in arguments[1:]])


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2:])))
