"""A session finds the best, remembers, goes on, and is not fooled by luck."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nybble.schedules.records import Records
from nybble.tuning.evolve import Search
from nybble.tuning.measure import TURNS, Outcome
from nybble.tuning.memory import SURE, progress_of
from nybble.tuning.serve import PATIENCE, Job, gradient, limit_of, next_job
from nybble.tuning.session import Session
from nybble.tuning.state import Budget, Settings, State
from nybble.tuning.tasks import Point, Task
from tests.tuning.synthetic import DEEP, FEW, WIDE, Formula, tasks_in


def session(folder: Path, tasks: list[Task], measurer: Formula, trials: int = 40) -> Session:
    records = Records.open(folder / "net.jsonl")
    return Session(tasks, measurer, records, Budget(trials), Settings(seed=1, batch=8))


def best_of_all(task: Task, formula: Formula) -> float:
    points = [p for v in Search(task).variants.values() for p in v.every()]
    return min(formula.ratio(task, point) for point in points)


def test_a_tenth_of_the_trials_finds_nearly_the_best(tmp_path: Path) -> None:
    formula, tasks = Formula(noise=0.01), tasks_in(tmp_path, WIDE)
    space = sum(len(list(v.every())) for v in Search(tasks[0]).variants.values())
    state = session(tmp_path, tasks, formula, space // 10).run()
    assert state.trials <= space // 10
    assert state.jobs[0].search.ratio <= 1.05 * best_of_all(tasks[0], formula)


def test_no_point_is_measured_twice_but_by_a_long_race(tmp_path: Path) -> None:
    formula, tasks = Formula(noise=0.05), tasks_in(tmp_path, WIDE, FEW)
    session(tmp_path, tasks, formula, 40).run()
    long = [(key, point) for key, point, turns in formula.asked if turns == SURE]
    assert len(long) == len(set(long))
    short = [(key, point) for key, point, turns in formula.asked if turns == TURNS]
    assert len(short) == len(set(short)) == 40
    assert {turns for *_, turns in formula.asked} == {TURNS, SURE}


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    asked = []
    for name in ("one", "two"):
        formula = Formula()
        tasks = tasks_in(tmp_path / name, WIDE, FEW)
        session(tmp_path / name, tasks, formula, 32).run()
        asked.append(formula.asked)
    assert asked[0] == asked[1]


def test_a_session_goes_on_where_another_ended(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, WIDE, FEW)
    first = session(tmp_path, tasks, Formula(), 32)
    before = first.run()
    later = Formula()
    second = session(tmp_path, tasks, later, 48)
    assert second.state.resumed == second.state.trials == 32
    for old, new in zip(before.jobs, second.state.jobs, strict=True):
        assert new.search.outcomes.keys() == old.search.outcomes.keys()
        assert new.search.ratio == old.search.ratio
    assert second.run().trials == 48
    known = {(job.search.task.key, p) for job in before.jobs for p in job.search.outcomes}
    fresh = {(key, point) for key, point, turns in later.asked if turns == TURNS}
    assert len(fresh) == 16
    assert not fresh & known


def test_what_others_measured_is_not_taken_over(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, FEW)
    session(tmp_path, tasks, Formula(), 16).run()
    lines = (tmp_path / "net.jsonl").read_text().splitlines()
    for field, value in (("sources", "0"), ("threads", 2), ("reference", ["cpu.other", "int8"])):
        folder = tmp_path / field
        folder.mkdir()
        changed = [json.dumps({**json.loads(line), field: value}) for line in lines]
        (folder / "net.jsonl").write_text("".join(f"{line}\n" for line in changed))
        assert session(folder, tasks, Formula()).state.trials == 0


class Interrupted(Formula):
    """A Ctrl-C comes at a given trial."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        for outcome in super().measure(task, points, turns):
            if len(self.asked) > self.at:
                raise KeyboardInterrupt
            yield outcome


def test_ctrl_c_loses_the_running_candidate_alone(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, WIDE)
    state = session(tmp_path, tasks, Interrupted(13)).run()
    assert state.interrupted
    again = session(tmp_path, tasks, Formula())
    assert again.state.trials == state.trials
    assert len(Records.open(tmp_path / "net.jsonl")) == 13
    assert not again.run().interrupted


class Lucky(Formula):
    """One short race says that everything takes half as long as it does."""

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        for outcome in super().measure(task, points, turns):
            assert outcome.ratio is not None
            scale = 0.5 if turns == TURNS and outcome.ratio > 1 else 1.0
            yield replace(outcome, ratio=outcome.ratio * scale)


def test_luck_does_not_win(tmp_path: Path) -> None:
    formula, tasks = Lucky(), tasks_in(tmp_path, WIDE, FEW)
    for job in session(tmp_path, tasks, formula).run().jobs:
        best = job.search.best
        assert best is not None
        assert best.ratio == pytest.approx(formula.ratio(job.search.task, best.point))


class Hasty(Formula):
    """The reference seems faster than itself."""

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        for outcome in super().measure(task, points, turns):
            own = outcome.point == task.reference
            yield replace(outcome, ratio=0.8 if own else 1.0)


def test_the_reference_does_not_win_against_itself(tmp_path: Path) -> None:
    state = session(tmp_path, tasks_in(tmp_path, WIDE, FEW), Hasty(), 24).run()
    assert [job.search.ratio for job in state.jobs] == [1, 1]


class Failing(Formula):
    """One kernel refuses the layer's values, and two splits crash."""

    def measure(self, task: Task, points: Sequence[Point], turns: int = TURNS) -> Iterator[Outcome]:
        for outcome in super().measure(task, points, turns):
            point = outcome.point
            if "winograd" in point.kernel:
                yield Outcome.failed(point, "illegal", "the values are too large")
            elif dict(point.decisions)["splits"] == 2 and point != task.reference:
                yield Outcome.failed(point, "crash", "signal 11")
            else:
                yield outcome


def test_failures_are_counted_and_not_tried_again(tmp_path: Path) -> None:
    formula, tasks = Failing(), tasks_in(tmp_path, WIDE)
    state = session(tmp_path, tasks, formula, 40).run()
    assert state.failures["crash"] > 0
    assert 0 < state.failures["illegal"] <= 8  # the kernel is not asked again after a batch
    crashed = {o.point for o in state.jobs[0].search.outcomes.values() if o.failure}
    later = Failing()
    session(tmp_path, tasks, later, 56).run()
    assert len(later.asked) >= 16
    assert not crashed & {point for _, point, _ in later.asked}


def test_progress_is_kept_beside_the_records(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, WIDE, FEW)
    for trials in (24, 40):
        session(tmp_path, tasks, Formula(), trials).run()
    path = progress_of(tmp_path / "net.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1]["trials"] == 40
    assert len({line["network"] for line in lines}) == 1
    for name in ("elapsed", "trials"):
        column = [line[name] for line in lines]
        assert column == sorted(column)
    speedups = [line["reference"] / line["seconds"] for line in lines]
    assert speedups[-1] > 1


def test_time_ends_a_session(tmp_path: Path) -> None:
    records = Records.open(tmp_path / "net.jsonl")
    tasks = tasks_in(tmp_path, WIDE)
    state = Session(tasks, Formula(), records, Budget(None, 0.0)).run()
    assert state.trials == 0


# ---------------------------------------------------------------- which task is next


def jobs(folder: Path) -> list[Job]:
    return [Job(Search(task)) for task in tasks_in(folder, WIDE, DEEP, FEW)]


def serve(job: Job, ratio: float, trials: int = 8) -> None:
    """A batch of trials after which the best ratio is as given."""
    task = job.search.task
    job.trials += trials
    job.search.confirm(Outcome(task.reference, 1e-3, 1.0, 0.0))
    other = replace(task.reference, decisions=(("tile", f"{job.trials}"),))
    job.search.best = Outcome(other, ratio * 1e-3, ratio, 0.0)
    job.note()


def chosen(some: list[Job]) -> Job | None:
    import random  # noqa: PLC0415

    return next_job(some, random.Random(1))


def test_every_task_comes_first_once_and_gains_come_next(tmp_path: Path) -> None:
    some = jobs(tmp_path)
    order = []
    for _ in some:
        job = chosen(some)
        assert job is not None
        order.append(job.search.task.problem.macs)
        serve(job, 1.0)
    assert order == sorted(order, reverse=True)
    for job in some:
        serve(job, 1.0)
    without = [gradient(job, some) for job in some]
    serve(some[1], 0.7)
    after = [gradient(job, some) for job in some]
    assert after[1] > 2 * without[1]  # it gained lately
    assert after[0] > without[0]  # a layer much like it may gain as much
    assert after[2] == without[2]


def test_tasks_stop_without_progress_and_when_all_was_tried(tmp_path: Path) -> None:
    first, second, third = jobs(tmp_path)
    while first.stopped is None:
        serve(first, 0.9)
    assert first.stopped == "no progress"
    assert first.trials >= PATIENCE
    second.search.is_exhausted = True
    serve(second, 1.0)
    assert second.stopped == "all tried"
    third.limit = 0.99e-3
    serve(third, 1.0)
    assert third.stopped == "at the limit"
    assert chosen([first, second, third]) is None


def test_an_exhausted_space_ends_the_session(tmp_path: Path) -> None:
    tasks = tasks_in(tmp_path, replace(FEW, name="tiny", x=(1, 16), w=(8, 16)))
    state: State = session(tmp_path, tasks, Formula(), 10_000).run()
    every = {p for v in state.jobs[0].search.variants.values() for p in v.every()}
    assert every <= state.jobs[0].search.outcomes.keys()
    assert state.jobs[0].stopped == "all tried"


def test_the_limit_is_known_for_products_alone(tmp_path: Path) -> None:
    wide, few = tasks_in(tmp_path, WIDE, FEW)
    rates = {"int8": 1e9, "int4": 2e9, "float32": 1e9}
    transformed, plain = limit_of(Search(wide), rates), limit_of(Search(few), rates)
    assert plain == pytest.approx(few.problem.macs / 1e9)
    assert transformed == pytest.approx(wide.problem.macs / 2.25e9)
    assert limit_of(Search(few), {}) is None
