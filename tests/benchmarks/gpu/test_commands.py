"""What is made of the output of trainers and of pytest."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.gpu import correctness
from benchmarks.gpu.checks import FAILED, CheckFailed, Ended, Row
from benchmarks.gpu.commands import of_junit, of_training


def test_a_run_that_falls_back_or_does_not_learn_has_failed(tmp_path: Path) -> None:
    learnt = json.dumps({"first_loss": 8.7, "last_loss": 7.1})
    assert of_training(True, Ended(f"noise\n{learnt}"))["last_loss"] == 7.1
    with pytest.raises(CheckFailed, match="FlexAttention cannot be used here"):
        of_training(True, Ended(learnt, "FlexAttention cannot be used here (RuntimeError: x)"))
    for last in ("8.8", "NaN"):
        with pytest.raises(CheckFailed, match="the loss does not fall"):
            of_training(True, Ended(f'{{"first_loss": 8.7, "last_loss": {last}}}'))
    assert of_training(False, Ended('{"first_loss": 0.69, "last_loss": 0.70}'))["last_loss"] == 0.7


def test_failures_of_pytest_come_with_their_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="one"/><testcase classname="a" name="two">'
        '<failure message="m">line\nE assert 1 == 2</failure></testcase><testcase classname="b" name="three">'
        "<skipped/></testcase></testsuite></testsuites>"
    )
    found = of_junit(path, Ended("", ""))
    assert (found["passed"], found["failed_tests"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == [{"test": "a::two", "traceback": "line\nE assert 1 == 2"}]
    rows: Mapping[str, Row] = {"tests of attention": {**found, "status": FAILED}}
    assert correctness.tests_details(rows)[-1] == "- a::two: E assert 1 == 2"
