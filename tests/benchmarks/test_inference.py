"""How fast photos become label maps beside the tutorial's and its peers: one at a time, and eight."""

import clock
import pytest
from axes import over
from contest import read_replayed
from entrants import BUNDLE, FEW, OURS, TUTORIAL, TWIN, find_absence, make_contest
from work import Size, make_inference, make_tutorial_inference

pytestmark = pytest.mark.benchmark(timer=read_replayed)


@over([Size(32, 256, 1), Size(16, 128, 8)], FEW)
def test_inference(enter, leave_out, size, name, names):
    if absence := find_absence(name):
        leave_out(absence)
    enter(make_contest("inference", size, names, make_inference, make_tutorial_inference, 1, clock.find_device()), name)


@pytest.mark.skipif(clock.find_device().type != "cpu", reason="what is exported runs on CPUs")
@over([Size(32, 256, 1)], (OURS, "ours, float32", TUTORIAL, TWIN, *BUNDLE))
def test_exported(enter, leave_out, size, name, names):
    if absence := find_absence(name):
        leave_out(absence)
    contest = make_contest("exported", size, names, make_inference, make_tutorial_inference, 1, clock.find_device())
    enter(contest, name)
