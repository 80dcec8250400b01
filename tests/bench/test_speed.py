"""`bench compare --speed`: what two files of benchmarks say of each other, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.speed import MAX_BYTES, Timing, compare_speed, compare_timings

MACHINE = {"cpu": "Some CPU", "cores": "2", "threads": "2", "gpu": "none", "torch": "2.13.0", "git_commit": "a" * 40}


def make_entry(name: str, median: float, noise_floor: float | None = 0.05) -> dict:
    stats = {"median": median, "q1": median * 0.9, "q3": median * 1.1}
    return {"fullname": f"tests/x.py::{name}", "stats": stats, "extra_info": {"noise_floor": noise_floor}}


def make_content(*entries: dict, **machine: str) -> dict:
    return {"machine_info": {"catseg": MACHINE | machine}, "benchmarks": list(entries)}


@pytest.fixture
def write(tmp_path):
    """write(name, content): a file of benchmarks."""

    def write(name: str, content: object):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def find_line(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if line.startswith(name))
    return line.split()


def test_each_benchmark_of_both_files_is_faster_slower_or_a_tie(write):
    a = make_content(make_entry("test_up", 0.2), make_entry("test_down", 0.1), make_entry("test_same", 0.1))
    b = make_content(make_entry("test_up", 0.1), make_entry("test_down", 0.2), make_entry("test_same", 0.104))
    lines = compare_speed(write("a.json", a), write("b.json", b))
    assert find_line(lines, "test_up") == ["test_up", "200", "100", "2.00", "(1.64", "..", "2.44)", "faster"]
    assert find_line(lines, "test_down")[-1] == "slower"
    assert find_line(lines, "test_same")[-1] == "tie"
    assert "1 faster, 1 slower, 1 tie" in lines
    assert max(len(line) for line in lines[2:]) <= 120


def test_the_larger_noise_floor_of_the_two_files_decides(write):
    quiet, noisy = (make_content(make_entry("test_it", 0.1, floor)) for floor in (0.01, 0.25))
    other = make_content(make_entry("test_it", 0.12, 0.01))
    paths = write("quiet.json", quiet), write("noisy.json", noisy), write("other.json", other)
    assert find_line(compare_speed(paths[0], paths[2]), "test_it")[-1] == "slower"
    assert find_line(compare_speed(paths[1], paths[2]), "test_it")[-1] == "tie"
    assert find_line(compare_speed(paths[2], paths[1]), "test_it")[-1] == "tie"


def test_what_moved_no_farther_than_code_that_is_the_same_in_both_is_a_tie(write):
    """The base is 10 % slower in the second run, as the machine was; of the others only one moved farther."""

    def make(base: float, near: float, far: float) -> dict:
        entries = [make_entry(name, median, 0.01) for name, median in (("test_base", base), ("test_near", near))]
        entries[0]["extra_info"]["is_base"] = True
        return make_content(*entries, make_entry("test_far", far, 0.01))

    lines = compare_speed(write("a.json", make(0.1, 0.1, 0.1)), write("b.json", make(0.11, 0.108, 0.12)))
    assert [find_line(lines, name)[-1] for name in ("test_base", "test_near", "test_far")] == ["tie", "tie", "slower"]
    assert any(line.startswith("or within 10.0%") for line in lines)


def test_without_a_base_in_both_it_is_said_that_the_machine_may_have_moved(write):
    a, b = (make_content(make_entry("test_it", median)) for median in (0.1, 0.2))
    assert any("no base is in both" in line for line in compare_speed(write("a.json", a), write("b.json", b)))


def test_without_a_noise_floor_nothing_is_claimed(write):
    path = write("a.json", make_content(make_entry("test_it", 0.1, None)))
    other = write("b.json", make_content(make_entry("test_it", 0.9, None)))
    lines = compare_speed(path, other)
    assert find_line(lines, "test_it")[-1] == "unknown"
    assert lines[-1] == "Unknown: neither file has a noise floor for it."


def test_what_is_in_one_file_only_is_listed_and_so_are_torch_and_commits(write):
    a = make_content(make_entry("test_it", 0.1), make_entry("test_old", 0.1))
    b = make_content(make_entry("test_it", 0.1), make_entry("test_new", 0.1), torch="2.14.0", git_dirty="true")
    lines = compare_speed(write("a.json", a), write("b.json", b))
    assert "only in A: test_old" in lines
    assert "only in B: test_new" in lines
    assert lines[0].endswith("a.json, torch 2.13.0, commit aaaaaaaa")
    assert lines[1].endswith("b.json, torch 2.14.0, commit aaaaaaaa (changed)")


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("cpu", "CPU Some CPU and 9"),
        ("cores", "cores 2 and 9"),
        ("threads", "threads 2 and 9"),
        ("gpu", "GPU none and 9"),
    ],
)
def test_unlike_machines_are_refused_by_the_fact_that_differs(write, refusal, fact, words):
    path = write("a.json", make_content(make_entry("test_it", 0.1)))
    other = write("b.json", make_content(make_entry("test_it", 0.1), **{fact: "9"}))
    assert f"measured on different machines ({words})" in refusal(compare_speed, path, other)


def test_files_without_a_benchmark_in_common_are_refused(write, refusal):
    paths = [write(f"{name}.json", make_content(make_entry(name, 0.1))) for name in ("test_a", "test_b")]
    assert "no benchmark is in both" in refusal(compare_speed, *paths)


ENTRY = make_entry("test_it", 0.1)
BROKEN = {
    "no JSON": (b"{", "cannot be read (no JSON)"),
    "no text": (b"\xff\xfe\xff", "cannot be read (no JSON)"),
    "brackets": (b"[" * 200_000, "cannot be read (no JSON)"),
    "many digits": (b"[" + b"1" * 10_000 + b"]", "cannot be read (no JSON)"),
    "a list": ([], "not a file of pytest-benchmark"),
    "no machine": ({"benchmarks": []}, "machine_info is missing"),
    "another suite's": ({"machine_info": {"node": "x"}, "benchmarks": [ENTRY]}, "does not say which machine"),
    "machine of numbers": (
        make_content(ENTRY) | {"machine_info": {"catseg": {"cpu": 1}}},
        "does not say which machine",
    ),
    "no list": (make_content(ENTRY) | {"benchmarks": {}}, "benchmarks is missing or of the wrong type"),
    "nothing in it": (make_content(), "no benchmarks in it"),
    "entry of text": (make_content(ENTRY, "x"), "benchmarks[1] is missing or of the wrong type"),
    "no name": (make_content(ENTRY | {"fullname": None}), "benchmarks[0].fullname is missing"),
    "twice": (make_content(ENTRY, ENTRY), "is in it twice"),
    "no stats": (make_content(ENTRY | {"stats": []}), "benchmarks[0].stats is missing"),
    "text": (make_content(ENTRY | {"stats": {"median": "1"}}), "benchmarks[0].stats.median is no number"),
    "zero": (make_content(ENTRY | {"stats": {"median": 0}}), "benchmarks[0].stats.median is no number"),
    "true": (make_content(ENTRY | {"stats": {"median": True}}), "benchmarks[0].stats.median is no number"),
    "nan": (make_content(ENTRY | {"stats": {"median": float("nan")}}), "benchmarks[0].stats.median is no number"),
    "huge": (make_content(ENTRY | {"stats": {"median": 10**400}}), "benchmarks[0].stats.median is no number"),
    "floor": (make_content(ENTRY | {"extra_info": {"noise_floor": -1}}), "noise_floor is no number"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(write, refusal, content, words):
    good, broken = write("good.json", make_content(ENTRY)), write("broken.json", content)
    for paths in ((good, broken), (broken, good)):
        line = refusal(compare_speed, *paths)
        assert line.startswith(f"{broken}: ")
        assert words in line


def test_what_is_no_file_or_too_large_is_refused(write, refusal, tmp_path):
    good = write("good.json", make_content(ENTRY))
    assert "no such file" in refusal(compare_speed, good, tmp_path / "absent.json")
    assert "no such file" in refusal(compare_speed, tmp_path, good)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "bytes are over" in refusal(compare_speed, good, tmp_path / "large.json")


def test_a_hostile_name_moves_no_cursor_and_breaks_no_line(write):
    path = write("a.json", make_content(make_entry("\x1b[2J\n\ud800" + "x" * 10_000, 0.1)))
    lines = compare_speed(path, path)
    assert all(line.isprintable() for line in lines)
    assert max(len(line) for line in lines[2:]) <= 140


seconds = st.floats(1e-9, 1e4)


@given(first=seconds, second=seconds, spread=st.floats(0, 0.9), floor=st.floats(0, 10))
def test_the_ratio_turns_over_with_the_files_and_lies_within_its_spread(first, second, spread, floor):
    a, b = (Timing(median, median * (1 - spread), median * (1 + spread), floor) for median in (first, second))
    one, other = compare_timings(a, b), compare_timings(b, a)
    assert one.ratio * other.ratio == pytest.approx(1)
    assert one.low <= one.ratio * (1 + 1e-9)
    assert one.high >= one.ratio * (1 - 1e-9)
    opposite = {"faster": "slower", "slower": "faster", "tie": "tie"}
    if abs(max(one.ratio, 1 / one.ratio) - 1 - floor) > 1e-9:  # not just at the floor
        assert other.verdict == opposite[one.verdict]
    assert compare_timings(a, a).verdict == "tie"


def test_the_command_compares_two_files_or_an_experiment_but_not_both(write, bench):
    path = str(write("a.json", make_content(ENTRY)))
    result = bench("compare", "--speed", path, path)
    assert (result.exit_code, "1 tie" in result.stdout) == (0, True)
    result = bench("compare", "tiny", "--speed", path, path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "not an experiment, got tiny; leave it out" in result.stderr
    result = bench("compare", "--speed", path, "absent.json")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("option", [("--csv", "out.csv"), ("--definitions",), ("--test", "photos")])
def test_what_is_for_scores_is_not_for_speed(write, bench, option):
    path = str(write("a.json", make_content(ENTRY)))
    result = bench("compare", "--speed", path, path, *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "leave the other options out" in result.stderr
