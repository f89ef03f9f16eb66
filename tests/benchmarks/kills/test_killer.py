"""A pipeline is killed and started again; what its state held, and where it resumed, is compared.

In place of `run.sh` stands a shell script that saves a state a step.
"""

from pathlib import Path

import pytest
import torch

from benchmarks import proc
from benchmarks.kills import pipeline
from benchmarks.kills.killer import Killer
from benchmarks.kills.pipeline import Folders

NUM_STEPS = 120
TRAINER = f"""
state=$OUT_DIR/checkpoints/pretrain/abc/state.pt
mkdir -p "${{state%/*}}" "$OUT_DIR/stages"
echo '{{"status": "running"}}' > "$OUT_DIR/stages/pretrain.json"
step=0
if [[ -e $state ]]; then
  while ! cmp -s "states/$step.pt" "$state"; do step=$((step + 1)); done
  echo "resuming after step $step of {NUM_STEPS}"
fi
while ((step < {NUM_STEPS})); do
  step=$((step + 1))
  cp "states/$step.pt" "${{state%/*}}/.state.pt.new"
  sleep 0.02
  mv "${{state%/*}}/.state.pt.new" "$state"
  echo "pretrain 5% ($step/{NUM_STEPS} steps)"
  sleep 0.02
done
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A repository whose `run.sh` is that script."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs Linux")
    (tmp_path / "states").mkdir()
    for step in range(NUM_STEPS + 1):
        torch.save({"step": step}, tmp_path / "states" / f"{step}.pt")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.sh").write_text(TRAINER)
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    (tmp_path / "run").mkdir()
    return Folders(tmp_path / "run")


def killer_of(folders: Folders) -> Killer:
    return Killer(folders, folders.base / "profile.yaml", 1, 0, {"pretrain save": 0.04})


def test_a_run_that_resumes_from_its_state_at_each_kill_has_no_problem(folders: Folders) -> None:
    killer = killer_of(folders)
    with killer:
        plan = [lambda: killer.after_save("pretrain"), lambda: killer.during_save("pretrain")]
        assert killer.carry_out(plan) == 0
    assert [kill.problems for kill in killer.kills] == [[], []]
    assert [kill.moment for kill in killer.kills] == ["after a save", "during a save"]
    steps = [kill.state_step or 0 for kill in killer.kills]
    assert 0 < steps[0] < steps[1] and [kill.resumed_after for kill in killer.kills] == steps
    assert killer.starts == 3 and killer.saved_step("pretrain") == NUM_STEPS


def test_a_run_that_starts_anew_after_a_kill_is_reported(folders: Folders) -> None:
    script = folders.base.parent / "scripts" / "run.sh"
    script.write_text(TRAINER.replace("if [[ -e $state ]]", 'rm -f "$state"\nif [[ -e $state ]]'))
    killer = killer_of(folders)
    with killer:
        killer.after_save("pretrain")
    (problem,) = killer.kills[0].problems
    assert problem == f"resumed after step None, but {killer.kills[0].state_step} was saved"


def test_no_pipeline_outlives_an_error(folders: Folders) -> None:
    killer = killer_of(folders)
    with pytest.raises(RuntimeError), killer:
        raise RuntimeError
    assert proc.session(killer.pipeline.process.pid) == []
