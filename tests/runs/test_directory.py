from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from probe.analyses import tokenwise
from probe.claims import Claim
from probe.errors import InputError
from probe.runs import Run, Schema, Task, Variable, create_run, provenance, write_file
from tests.plant import toy
from tests.plant.small_disk import CANNOT_MOUNT


@dataclass(frozen=True, kw_only=True)
class Inner:
    threshold: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str = "EleutherAI/pythia-1b"
    windows: int = 4
    text: Path | None = Path("a.txt")
    ranks: tuple[int, ...] = (4, 8)
    seed: int = 3
    thresholds: Inner = field(default_factory=Inner)


# Not forks: the OpenMP threads of this process do not live on in one, whose first large operation then waits for them.
PROCESSES = multiprocessing.get_context("spawn")
TIME_LIMIT = 120  # seconds that another process may take
FINGERPRINT = {"weights": "0123", "text": "4567", "attention": "sdpa"}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with create_run("toy", Config(), FINGERPRINT, out=tmp_path / "run") as opened:
        yield opened


def reopen(run: Run, config: Config = Config(), fingerprint: dict[str, str] = FINGERPRINT, **options: Any) -> Run:
    run.close()
    return create_run("toy", config, fingerprint, out=run.directory, **options)


def claim(**values: Any) -> Claim:
    return Claim(
        **{
            "id": "toy.claim",
            "statement": "It holds.",
            "source": "ours",
            "statistic": "mean",
            "estimate": 1.5,
            "ci_low": 1.0,
            "ci_high": 2.0,
            "threshold": 0.0,
            "direction": ">",
            "unit": "documents",
            "n_units": 12,
            "null": {},
            "controls": [],
            "verdict": "supported",
            "reason": "because",
        }
        | values
    )


SCHEMA = Schema({"a": Variable("k value")})


def task(k: int) -> Task:
    return Task("s", {"k": k})


def save(run: Run, k: int, values: Any = (1.0,), seconds: float | None = None) -> None:
    run.save(task(k), {"a": values}, SCHEMA, seconds)


def saved(run: Run, k: int) -> list[float]:
    found: list[float] = run.piece("s", ["a"], k=k)["a"].tolist()
    return found


def hold(directory: Path, held: Any) -> None:
    run = create_run("toy", Config(), {}, out=directory)
    held.set()
    time.sleep(60)
    run.close()


class TestTasks:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
    def test_what_was_saved_is_read_bit_for_bit(self, run: Run, dtype: torch.dtype) -> None:
        values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        arrays = {"a": values, "b": values.mT, "empty": values[:0], "one": values[0, 0]}
        schema = Schema({name: Variable("i j" if name != "one" else "") for name in arrays})
        task = Task("states", {"layer": 3, "batch": 0})
        run.save(task, arrays, schema)
        read = run.piece("states", layer=3)
        assert sorted(read) == sorted(arrays)
        for name, expected in arrays.items():
            assert read[name].dtype == dtype
            assert torch.equal(read[name], expected)

    def test_has_tells_finished_tasks(self, run: Run) -> None:
        assert not run.has(task(1))
        save(run, 1)
        assert run.has(task(1))
        assert not run.has(task(2))
        assert not run.has(Task("other", {"k": 1}))
        assert (run.directory / "units" / "s" / "k-00001.safetensors").is_file()

    def test_a_runs_time_is_that_of_its_tasks_over_all_sessions(self, run: Run) -> None:
        save(run, 1, seconds=1.25)
        again = reopen(run)
        save(again, 2, seconds=0.5)
        assert again.seconds == 1.75
        save(again, 3)
        assert again.seconds is None
        again.close()

    def test_a_checkpoint_replaces_the_one_before(self, run: Run) -> None:
        assert run.load_checkpoint(task(1)) is None
        for step in (1, 2):
            run.save_checkpoint(task(1), {"step": torch.tensor(step), "weight": torch.full((2, 3), float(step))})
        held = run.load_checkpoint(task(1))
        assert held is not None
        assert (held["step"].item(), held["weight"].tolist()) == (2, [[2.0] * 3] * 2)
        assert not run.has(task(1))
        assert run.load_checkpoint(task(2)) is None

    def test_the_record_names_the_machine(self, run: Run) -> None:
        provenance = run.record["provenance"]
        assert provenance["cores"] == len(os.sched_getaffinity(0))
        assert provenance["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert provenance["cpu"]
        assert provenance["threads"] == torch.get_num_threads()

    def test_a_missing_or_damaged_file_is_an_input_error(self, run: Run) -> None:
        with pytest.raises(InputError, match="holds nothing of s: run the same command again"):
            run.piece("s", k=1)
        save(run, 1)
        path = run.directory / "units" / "s" / "k-00001.safetensors"
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(InputError, match="delete it and run again"):
            run.piece("s", k=1)

    def test_a_run_pickles_as_its_path_and_leaves_the_lock_behind(self, run: Run) -> None:
        save(run, 1)
        copy = pickle.loads(pickle.dumps(run))
        assert copy == run
        assert saved(copy, 1) == [1]
        copy.close()
        with pytest.raises(InputError, match="another"):
            create_run("toy", Config(), FINGERPRINT, out=run.directory)


class TestResults:
    @pytest.mark.guards(
        "names, flags and tokens with a zero byte fit netCDF",
        when="a run is saved",
        gives="the Dataset again",
    )
    def test_a_dataset_round_trips(self, run: Run) -> None:
        data = xr.Dataset(
            {
                "error": (("layer", "query"), np.float32([[1, np.nan], [3, 4]]), {"units": "1", "long_name": "error"}),
                "flat": ("layer", [True, False]),
                "token": ("query", ["ä", "a\0b"]),
            },
            coords={"layer": [0, 5], "fit": ["linear", "local"]},
            attrs={"model": "m", "demonstration": 0},
        )
        run.write_results(data)
        read = run.read_results()
        assert json.loads(read.attrs.pop("provenance")) == run.record
        assert read.attrs.pop("analysis") == run.record["analysis"]
        expected = data.assign(token=("query", ["ä", "a␀b"]))
        xr.testing.assert_identical(read, expected.assign_coords(fit=read.fit))
        assert read.fit.values.tolist() == ["linear", "local"]
        assert read.error.dtype == np.float32
        assert read.flat.dtype == bool
        assert data.token.values.tolist() == ["ä", "a\0b"], "the caller's data is untouched"
        with xr.open_dataset(run.directory / "results.nc") as opened:
            assert opened.sizes == {"layer": 2, "query": 2, "fit": 2}

    @pytest.mark.guards(
        "attributes are longer than 64 kB, empty, or flags",
        when="a run is saved",
        gives="the attributes again",
    )
    def test_attributes_of_any_length_round_trip(self, run: Run) -> None:
        attributes = {"long": "ä" * 70_000, "empty": "", "flag": True, "numbers": [1.5, 1e300], "nul": "a\0b"}
        of_variable = xr.Variable("x", [1.0], {"flag": np.bool_(False), "names": ["a", "ä\0"]})
        run.write_results(xr.Dataset({"z": of_variable}, attrs=attributes))
        read = run.read_results()
        assert read.attrs["long"] == attributes["long"]
        assert (read.attrs["empty"], read.attrs["flag"], read.attrs["nul"]) == ("", 1, "a␀b")
        assert list(read.attrs["numbers"]) == attributes["numbers"]
        assert read.z.attrs["flag"] == 0
        assert list(read.z.attrs["names"]) == ["a", "ä␀"]

    def test_no_results_yet(self, run: Run) -> None:
        with pytest.raises(InputError, match="to its end"):
            run.read_results()

    def test_claims_are_a_list_of_objects(self, run: Run) -> None:
        run.write_claims([claim(), claim(id="toy.other", estimate=float("nan"), null={"estimate": np.float64(0.5)})])
        text = (run.directory / "claims.json").read_text()
        assert "NaN" not in text
        first, second = json.loads(text)
        assert first["verdict"] == "supported"
        assert second["estimate"] is None
        assert second["null"] == {"estimate": 0.5}


class TestRecord:
    def test_config_json_holds_everything(self, run: Run) -> None:
        record = json.loads((run.directory / "config.json").read_text())
        assert record["analysis"] == "toy"
        assert record["config"] == {
            "model": "EleutherAI/pythia-1b",
            "windows": 4,
            "text": "a.txt",
            "ranks": [4, 8],
            "seed": 3,
            "thresholds": {"threshold": 0.9},
        }
        assert record["fingerprint"] == FINGERPRINT
        assert record["versions"]["torch"].startswith("2.")
        assert record["provenance"]["seed"] == 3
        assert record["provenance"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert record["provenance"]["date"].endswith("+00:00")
        assert {"command", "platform", "commit", "threads"} <= record["provenance"].keys()

    def test_a_run_from_python_is_recorded_as_the_call_that_repeats_it(self, tmp_path: Path) -> None:
        config = Config(windows=9, text=Path("it's.txt"), ranks=(2,), thresholds=Inner(threshold=0.5))
        with create_run("toy", config, {}, out=tmp_path / "run") as opened:
            command = opened.record["provenance"]["command"]
        assert command == (
            "from pathlib import Path\n"
            "from tests.runs.test_directory import Config, Inner, run\n"
            "\n"
            """run(Config(windows=9, text=Path("it's.txt"), ranks=(2,), thresholds=Inner(threshold=0.5)), """
            f"out=Path({str(tmp_path / 'run')!r}))"
        )
        lines = [line for line in command.splitlines() if "tests.runs.test_directory" not in line]
        called: list[Any] = []
        exec(
            "\n".join(lines),
            {"Config": Config, "Inner": Inner, "run": lambda *given, **named: called.append((given, named))},
        )
        assert called == [((config,), {"out": tmp_path / "run"})]

    def test_the_call_imports_from_where_users_do(self) -> None:
        config = tokenwise.Config(text=Path("a.txt"), thresholds=tokenwise.Thresholds(threshold_mlp_helps=0.1))
        assert provenance.call(config, None) == (
            "from pathlib import Path\n"
            "from probe.analyses.tokenwise import Config, Thresholds, run\n"
            "\n"
            "run(Config(text=Path('a.txt'), split='test', thresholds=Thresholds(threshold_mlp_helps=0.1)))"
        )

    def test_what_was_typed_is_recorded_instead(self, tmp_path: Path) -> None:
        with create_run("toy", Config(), {}, out=tmp_path, typed="probe toy --out x") as opened:
            assert opened.record["provenance"]["command"] == "probe toy --out x"

    def test_a_script_of_its_own_is_recorded_as_it_was_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "orig_argv", ["python", "study.py", "--fast"])
        monkeypatch.setattr(Config, "__module__", "__main__")
        assert provenance.call(Config(), None) == "python study.py --fast"

    def test_a_configuration_of_other_things_is_a_defect(self, tmp_path: Path) -> None:
        @dataclass(frozen=True)
        class Odd:
            module: object

        with pytest.raises(TypeError, match="a configuration holds numbers, text"):
            create_run("toy", Odd(object()), {}, out=tmp_path / "run")

    def test_the_default_directory_is_named_by_model_and_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        names = []
        for config, fingerprint in [
            (Config(), FINGERPRINT),
            (Config(), FINGERPRINT),
            (Config(windows=5), FINGERPRINT),
            (Config(), FINGERPRINT | {"weights": "9999"}),
            (Config(model="/some/where/my model.gguf"), FINGERPRINT),
        ]:
            with create_run("toy", config, fingerprint) as opened:
                names.append(opened.directory)
        assert names[0] == names[1]
        assert len(set(names)) == 4
        assert names[0].parent == Path("runs/toy")
        assert names[0].name.startswith("pythia-1b-")
        assert len(names[0].name) == len("pythia-1b-") + 8
        assert names[4].name.startswith("my-model.gguf-")


class TestReopening:
    def test_finished_tasks_and_record_are_kept(self, run: Run) -> None:
        record = run.record
        save(run, 1)
        with reopen(run) as again:
            assert again.has(task(1))
            assert again.record == record

    @pytest.mark.guards(
        "a directory belongs to one configuration",
        when="a run is saved",
        says=(
            "a run directory belongs to one configuration, but in … …: pass fresh=True to move the old "
            "run aside, or another out="
        ),
    )
    def test_another_configuration_is_refused_with_the_fields_that_differ(self, run: Run) -> None:
        config = Config(windows=8, ranks=(4,), thresholds=Inner(threshold=0.5))
        with pytest.raises(InputError) as error:
            reopen(run, config)
        message = str(error.value)
        assert "ranks was [4, 8], is [4]; thresholds.threshold was 0.9, is 0.5; windows was 4, is 8" in message
        assert "fresh=True" in message
        assert "out=" in message
        assert "seed" not in message
        assert "\n" not in message

    def test_an_option_that_is_newer_than_a_run_was_at_its_default(self, run: Run) -> None:
        file = run.directory / "config.json"
        record = json.loads(file.read_text())
        del record["config"]["windows"], record["config"]["thresholds"]
        file.write_text(json.dumps(record))
        again = reopen(run)
        with pytest.raises(InputError, match="windows was 4, is 5: pass fresh=True"):
            reopen(again, Config(windows=5))
        with pytest.raises(InputError, match=r"thresholds\.threshold was 0\.9, is 0\.5"):
            reopen(again, Config(thresholds=Inner(threshold=0.5)))

    def test_another_fingerprint_is_refused(self, run: Run) -> None:
        with pytest.raises(InputError, match=r'fingerprint\.weights was "0123", is "9"'):
            reopen(run, fingerprint=FINGERPRINT | {"weights": "9"})

    def test_another_analysis_is_refused(self, run: Run) -> None:
        run.close()
        with pytest.raises(InputError, match='analysis was "toy", is "other"'):
            create_run("other", Config(), FINGERPRINT, out=run.directory)

    def test_another_library_version_is_refused(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        real = provenance._version
        monkeypatch.setattr(provenance, "_version", lambda name: "99" if name == "torch" else real(name))
        with pytest.raises(InputError, match=r'versions.torch was "2.*", is "99"'):
            reopen(run)

    @pytest.mark.parametrize("written", [None, 1, 99])
    def test_a_directory_of_another_format_is_refused_by_name(self, run: Run, written: int | None) -> None:
        """Those of the first releases name no format; `fresh` moves them aside."""
        record = {name: value for name, value in run.record.items() if name != "format"}
        (run.directory / "config.json").write_text(
            json.dumps(record if written is None else record | {"format": written})
        )
        with pytest.raises(InputError, match=rf"{run.directory} has format {written or 1} and this version reads 2"):
            reopen(run)
        with pytest.raises(InputError, match=r"read by the version of probe that wrote it.*pass fresh=True"):
            toy.analysis.read(run.directory)
        with reopen(run, fresh=True) as again:
            assert again.record["format"] == 2
            assert len(list(run.directory.parent.iterdir())) == 2

    def test_after_a_refusal_the_directory_is_free(self, run: Run) -> None:
        with pytest.raises(InputError):
            reopen(run, Config(windows=8))
        reopen(run).close()

    def test_fresh_moves_the_old_run_aside(self, run: Run) -> None:
        save(run, 1)
        with reopen(run, Config(windows=8), fresh=True) as again:
            assert not again.has(task(1))
            assert again.record["config"]["windows"] == 8
            (aside,) = [entry for entry in run.directory.parent.iterdir() if entry != run.directory]
            assert aside.name.startswith("run.2")
            assert saved(Run(aside), 1) == [1]
        with reopen(run, Config(windows=8), fresh=True):
            assert len(list(run.directory.parent.iterdir())) == 3

    def test_fresh_on_nothing_just_begins(self, tmp_path: Path) -> None:
        create_run("toy", Config(), {}, out=tmp_path / "new", fresh=True).close()
        assert [entry.name for entry in tmp_path.iterdir()] == ["new"]

    def test_temporary_files_of_a_killed_process_are_removed(self, run: Run) -> None:
        save(run, 1)
        partials = [
            run.directory / ".results.nc.1.partial",
            run.directory / "units" / "s" / ".k-00001.safetensors.1.partial",
        ]
        for partial in partials:
            partial.write_bytes(b"half")
        with reopen(run):
            assert not any(partial.exists() for partial in partials)
            assert run.has(task(1))

    def test_a_process_killed_before_its_first_file_leaves_a_directory_that_opens(self, tmp_path: Path) -> None:
        (tmp_path / ".lock").touch()
        (tmp_path / ".config.json.77.partial").touch()
        create_run("toy", Config(), {}, out=tmp_path).close()
        assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "config.json"}


class TestLock:
    @pytest.mark.guards(
        "one process works in a directory",
        when="a run is saved",
        says="only one process may work in a run directory, but another holds …: wait for it or pass another out=",
    )
    def test_a_second_opening_is_refused_until_the_first_is_closed(self, run: Run) -> None:
        with pytest.raises(InputError, match="only one process may work in a run directory"):
            create_run("toy", Config(), FINGERPRINT, out=run.directory)
        reopen(run).close()

    def test_fresh_does_not_move_a_run_that_is_being_worked_on(self, run: Run) -> None:
        with pytest.raises(InputError, match="only one process"):
            create_run("toy", Config(), FINGERPRINT, out=run.directory, fresh=True)
        assert [entry.name for entry in run.directory.parent.iterdir()] == ["run"]

    def test_the_lock_dies_with_its_process(self, tmp_path: Path) -> None:
        held = PROCESSES.Event()
        holder = PROCESSES.Process(target=hold, args=(tmp_path, held), daemon=True)
        holder.start()
        assert held.wait(TIME_LIMIT)
        with pytest.raises(InputError, match="only one process"):
            create_run("toy", Config(), {}, out=tmp_path)
        holder.kill()
        holder.join(TIME_LIMIT)
        assert holder.exitcode == -signal.SIGKILL
        create_run("toy", Config(), {}, out=tmp_path).close()

    @pytest.mark.guards("the file system has locks", when="a run is saved", gives="the run goes on, with a warning")
    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_a_file_system_without_locks_is_worked_on_without(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", refuse)
        with create_run("toy", Config(), {}, out=tmp_path) as run:
            assert (run.directory / "config.json").is_file()
        (line,) = [record.getMessage() for record in caplog.records if record.name == "probe.runs"]
        assert "without locks" in line
        assert "\n" not in line

    def test_another_failure_of_the_lock_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(InputError, match=r"cannot be \(Input/output error\): pass another out="):
            create_run("toy", Config(), {}, out=tmp_path)

    @pytest.mark.guards(
        "the system has file locks",
        when="a run is saved",
        says="a run needs the file locks of Linux or macOS, and this system has none: on Windows, run it in WSL",
    )
    def test_a_system_without_locks_is_refused_in_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
        with pytest.raises(InputError, match="run it in WSL"):
            create_run("toy", Config(), {}, out=tmp_path)


class TestDisk:
    def test_a_directory_of_other_things_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        for fresh in (False, True):
            with pytest.raises(InputError, match="holds other files: pass another out="):
                create_run("toy", Config(), {}, out=tmp_path, fresh=fresh)
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_in_place_of_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="is a file: pass another out="):
            create_run("toy", Config(), {}, out=tmp_path / "file")

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write")
    def test_an_unwritable_folder(self) -> None:
        with pytest.raises(InputError, match=r"the run directory must be writable.*pass another out="):
            create_run("toy", Config(), {}, out="/proc/run")

    @pytest.mark.parametrize("call", ["write", "fsync", "replace"])
    def test_a_full_disk_keeps_what_is_finished(self, run: Run, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        save(run, 1)
        save(run, 2)

        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if call == "write":
            monkeypatch.setattr(Path, "open", full)
        else:
            monkeypatch.setattr(os, call, full)
        with pytest.raises(InputError, match="No space left on device; free some space and run the same command again"):
            save(run, 2, (0.0,))
        monkeypatch.undo()
        assert saved(run, 1) == [1]
        assert saved(run, 2) == [1], "the old file stands until the new one is whole"
        assert not list(run.directory.rglob("*.partial"))

    def test_a_really_full_disk(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "tests.plant.small_disk", str(tmp_path)]
        child = subprocess.run(command, timeout=TIME_LIMIT, capture_output=True, text=True, check=False)
        if child.returncode == CANNOT_MOUNT:
            pytest.skip("mounting a small file system is not allowed here")
        assert child.returncode == 0, child.stderr

    def test_write_file_replaces_a_file_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "page.html"
        write_file(path, "ä" * 10)
        write_file(path, b"new")
        assert path.read_bytes() == b"new"
        assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_a_worker_in_another_process_can_save(run: Run) -> None:
    with PROCESSES.Pool(1) as pool:
        pool.apply_async(save, (run, 1, np.arange(100_000))).get(TIME_LIMIT)
    assert saved(run, 1) == list(range(100_000))


def test_replacing_a_field_with_the_same_value_is_the_same_run(run: Run) -> None:
    reopen(run, replace(Config(), windows=4)).close()
