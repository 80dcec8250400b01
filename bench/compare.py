"""Results -> an order. Pure: no files, no clock, no terminal.

In:  results of one experiment.   Out: those that finished, best first; those that failed.
Knows nothing of how they are shown.
"""

from collections.abc import Iterable

from bench.trial import TrialResult


def rank(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Finished trials by val/miou, best first; equals in the cheaper one's favour.

    One seed per setting gives an order, not a comparison: seeds alone can move val/miou by some 0.03.
    """
    finished = [result for result in results if result.status == "finished"]
    return sorted(finished, key=lambda result: (-result.metrics["val/miou"], result.metrics["cost/train_seconds"]))


def list_failed(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Trials that ended without a model, in the order they ran."""
    return [result for result in results if result.status == "failed"]
