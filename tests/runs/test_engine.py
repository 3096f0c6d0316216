from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from safetensors import safe_open

from probe.analysis import Subject
from probe.errors import InputError
from probe.runs import Run, Schema, Task, Variable, create_run
from probe.runs.engine import Measure, do, work
from tests.plant import toy

CONFIG = toy.Config(dataset="sample")
SUBJECT = Subject(CONFIG)
SCHEMA = Schema({"square": Variable("index")})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with create_run("toy", CONFIG, {}, out=tmp_path / "run") as opened:
        yield opened


def tasks(n: int) -> list[Task]:
    return [Task("square", {"index": index}) for index in range(n)]


def square(subject: Subject[toy.Config], task: Task, run: Run) -> Mapping[str, int]:
    with (run.directory / "worked").open("a") as file:
        file.write(str(task["index"]))
    return {"square": task["index"] ** 2}


def square_until_two(subject: Subject[toy.Config], task: Task, run: Run) -> Mapping[str, int]:
    if task["index"] == 2:
        raise KeyboardInterrupt
    return square(subject, task, run)


def fail_at_two(subject: Subject[toy.Config], task: Task, run: Run) -> Mapping[str, int]:
    if task["index"] == 2:
        raise InputError("layer 2, window 7: the state is not finite")
    return square(subject, task, run)


def do_squares(run: Run, measure: Measure, n: int, description: str = "squares", *, quiet: bool = True) -> None:
    work(measure, tasks(n), SUBJECT, run, SCHEMA, description=description, quiet=quiet)


def test_every_task_is_done_and_saved(run: Run) -> None:
    do_squares(run, square, 5)
    assert run.piece("square")["square"].tolist() == [0, 1, 4, 9, 16]


def test_the_time_of_each_task_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr("probe.runs.engine.time.perf_counter", lambda: next(ticks))
    do_squares(run, square, 2)
    assert run.seconds == 2.75


@pytest.mark.parametrize(
    ("function", "error"),
    [(square_until_two, KeyboardInterrupt), (fail_at_two, InputError)],
    ids=["interrupted", "wrong"],
)
def test_finished_tasks_are_kept_and_not_done_again(run: Run, function: Measure, error: type[BaseException]) -> None:
    with pytest.raises(error):
        do_squares(run, function, 5)
    assert [run.has(task) for task in tasks(5)] == [True, True, False, False, False]
    do_squares(run, square, 5)
    assert (run.directory / "worked").read_text() == "01234"


def test_progress_goes_to_standard_error_and_begins_at_what_is_finished(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    do_squares(run, square, 3, quiet=False)
    do_squares(run, square, 4, "more squares", quiet=False)
    said = capsys.readouterr()
    assert not said.out
    assert "squares: 100%" in said.err
    assert "more squares:  75%" in said.err
    assert "4/4" in said.err
    do_squares(run, square, 5)
    assert not capsys.readouterr().err


def test_two_tasks_of_one_name_are_a_defect(run: Run) -> None:
    with pytest.raises(ValueError, match=r"\('square', 'index-00001'\) comes more than once"):
        work(square, [*tasks(3), tasks(2)[1]], SUBJECT, run, SCHEMA, description="squares", quiet=True)
    assert not run.has(tasks(1)[0]), "nothing is done before it is noticed"


def test_a_function_that_another_process_could_not_find_is_refused(run: Run) -> None:
    def local(subject: Subject[toy.Config], task: Task, run: Run) -> Mapping[str, int]:
        return {}

    for function in (local, lambda subject, task, run: {}):
        with pytest.raises(ValueError, match="must be defined in a module"):
            do_squares(run, function, 1)


def test_a_task_done_in_another_process_leaves_the_same_bytes(run: Run, tmp_path: Path) -> None:
    """What is sent there is the function by name, the options, the task and the path of the run."""
    stages = toy.analysis.stages(SUBJECT)
    done = [(stage.measure, stage.tasks[1]) for stage in stages]
    here = Run(tmp_path / "here")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for measure, task in done:  # the second reads what the first has saved
            pool.apply_async(do, (measure, task, SUBJECT, run, toy.Toy.schema)).get(120)
            do(measure, task, SUBJECT, here, toy.Toy.schema)
    for _, task in done:
        assert contents(run, task) == contents(here, task)


def contents(run: Run, task: Task) -> tuple[str, dict[str, bytes]]:
    """The labels and the arrays of a task's file; what is beside them, how long it took, no two runs share."""
    with safe_open(run.directory / "units" / task.stage / f"{task.key}.safetensors", framework="np") as file:
        names = list(file.keys())
        return file.metadata()["piece"], {name: file.get_tensor(name).tobytes() for name in names}


class TestTask:
    def test_it_is_named_by_its_labels(self) -> None:
        assert Task("s", {"variant": "init-0", "layer": 3}).key == "init-0-layer-00003"
        assert Task("s", {"share": 0.5}).key == "share-0.5"
        assert Task("s").key == "all"

    def test_labels_and_arguments_are_read_alike(self) -> None:
        task = Task("s", {"start": 8}, {"stop": 12, "layers": [0, 1]})
        assert (task["start"], task["layers"], task.rows) == (8, [0, 1], slice(8, 12))
        assert pickle.loads(pickle.dumps(task)) == task
        with pytest.raises(KeyError):
            _ = task["windows"]

    @pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a b", "a\n"])
    def test_stages_and_labels_make_file_names(self, name: str) -> None:
        with pytest.raises(ValueError, match="must be file names"):
            Task(name)
        if name:
            with pytest.raises(ValueError, match="must be file names"):
                Task("s", {"variant": name})

    def test_what_cannot_be_written_as_json_is_refused(self) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            Task("s", {}, {"path": Path("a")})
