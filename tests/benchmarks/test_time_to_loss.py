"""Time to loss: budgets, the moment a level is reached, and what is shown of the JSON."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import time_to_loss
from benchmarks.time_to_loss import at_edge, baseline_seconds, point, seconds_to, targets
from benchmarks.training.runs import Run
from configs.schema import UserError


def at(seconds: float, bpb: float) -> dict[str, Any]:
    return point([Run(seconds, 1000, bpb, 5000, 10, 900.0)])


def arm(name: str, *curve: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "arm": name, "curve": list(curve), "dtype": "float32", "model": "512x8", "device": "CPU", "threads": 2,
        "has_bf16": True, "on_gpu": False, **fields,
    }  # fmt: skip


def test_a_level_between_two_points_is_reached_on_the_straight_line_over_log_time() -> None:
    curve = [at(200.0, 2.0), at(50.0, 2.4)]
    assert seconds_to(curve, 2.2) == (pytest.approx(math.sqrt(50 * 200)), True)
    assert seconds_to(curve, 2.0) == (pytest.approx(200.0), True)


def test_a_level_below_the_first_point_gives_an_upper_bound() -> None:
    assert seconds_to([at(50.0, 2.4), at(200.0, 2.0)], 2.5) == (50.0, False)


def test_a_level_that_no_point_reaches_is_never_reached() -> None:
    assert seconds_to([at(50.0, 2.4)], 2.3) is None
    assert "NOT met, ours has 2.4000 at best" in targets([arm("minillm", at(50, 2.4)), arm("baseline", at(9, 2.3))])[0]


def test_the_target_depends_on_bfloat16_instructions() -> None:
    curves = [at(240.0, 2.0)], [at(300.0, 2.5), at(1200.0, 2.0)]
    for has_bf16, seconds, met in ((True, 241.0, False), (True, 240.0, True), (False, 420.0, True)):
        lines = targets([arm("minillm", at(seconds, 2.0), has_bf16=has_bf16), arm("baseline", *curves[1])])
        assert lines[0].endswith("): met") == met


def test_a_best_rate_at_the_end_of_the_list_is_noticed() -> None:
    assert at_edge(1e-3, [1e-3, 2e-3, 4e-3]) and not at_edge(2e-3, [1e-3, 2e-3, 4e-3])
    assert not at_edge(1e-3, [1e-3])


def test_our_budgets_follow_from_the_seconds_of_the_baseline_where_it_has_epochs(tmp_path: Path) -> None:
    facts = {"model": "512x8", "device": "CPU", "corpus": "abc"}
    path = tmp_path / "loss.json"
    args = SimpleNamespace(json=path, minutes=20, budgets=None, epochs=0)
    bench: Any = SimpleNamespace(args=args, facts=lambda: facts)
    assert baseline_seconds(bench, []) == 1200.0
    args.epochs = 4
    with pytest.raises(UserError, match="Run --arms baseline first"):
        baseline_seconds(bench, [])
    done = arm("baseline", at(20.0, 2.6), at(80.0, 2.2), epochs=4, corpus="abc")
    assert baseline_seconds(bench, [done]) == 80.0
    for other in ({"epochs": 2}, {"corpus": "xyz"}, {"arm": "minillm"}):
        path.write_text(json.dumps([done | other]), encoding="utf-8")
        with pytest.raises(UserError, match="give --budgets"):
            baseline_seconds(bench, [])
    path.write_text(json.dumps([done]), encoding="utf-8")
    assert baseline_seconds(bench, []) == 80.0
    args.budgets = [1.0]
    assert baseline_seconds(bench, []) == 1200.0


def test_a_point_is_the_mean_over_the_seeds() -> None:
    found = point([Run(10.0, 100, 2.0, 50, 3, 7.0), Run(12.0, 100, 2.2, 50, 3, 9.0)])
    assert (found["seconds"], found["tokens"], found["heldout_bpb"], found["bytes_scored"]) == (11.0, 100, 2.1, 50)
    assert found["bpb_of_seeds"] == [2.0, 2.2] and found["peak_rss_mb"] == 9.0


def test_table_and_plot_come_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidate = {"learning_rate": 1e-3, "batch_size": 4, "seconds": 300.0, "steps": 9, "tokens": 5, "heldout_bpb": 2.4}
    baseline = arm("baseline", at(300.0, 2.4), at(1200.0, 2.2), candidates=[candidate], search_share=0.25)
    path = tmp_path / "loss.json"
    path.write_text(json.dumps([arm("minillm", at(60.0, 2.3), at(240.0, 2.1)), baseline]), encoding="utf-8")
    assert time_to_loss.main(["--from_json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "| baseline | float32 | 1200.0 | 10 | 1,000 | 2.2000 | 2.2000 | 900 |" in shown
    assert "| 0.001 | 4 | 300.0 | 9 | 5 | 2.4000 |" in shown
    assert "ours has after 120 s: 10.00x sooner (target 5.00x): met" in shown
    assert (tmp_path / "loss.svg").read_text(encoding="utf-8").startswith("<svg")
