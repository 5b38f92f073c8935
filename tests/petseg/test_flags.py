"""What commands hand on of their flags, what they refuse before anything is loaded, and what they print of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from petseg import best, compress, demo, estimate, export, predict
from petseg.inference.exported.program import Form
from petseg.inference.many.outputs import OutputFolder, Row
from petseg.inference.many.processes import Processes
from petseg.inference.many.wanted import Wanted
from petseg.inference.point_files import Point, Points, Speed
from petseg.inference.predictor import Options
from petseg.inference.scores import Measurement
from shards.command import OK, WRONG_USE, run_command

Note = Callable[..., Callable[..., Any]]


@pytest.fixture
def given() -> dict[str, Any]:
    """What the stand-ins of `note` were called with, by their names."""
    return {}


@pytest.fixture
def note(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Note:
    """note("module.function", result) stands in for a function, and notes its arguments."""

    def stand_in(place: str, result: Any = None) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            given[place.rpartition(".")[2]] = (*arguments, named) if named else arguments
            return result

        monkeypatch.setattr(place, noted)
        return noted

    return stand_in


def refused(main: Callable[..., int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(main, words) == WRONG_USE
    return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")


def test_best_measures_on_the_set_that_is_named_or_not_at_all(note: Note, given: dict[str, Any]) -> None:
    note("petseg.inference.winner.write_winner")
    assert best.main(["a", "b", "--out", "w.safetensors"]) == OK
    folders, out = (Path("a"), Path("b")), Path("w.safetensors")
    assert given["write_winner"] == (folders, out, "best", False, None)
    flags = ["--weights", "last", "--average", "--shards", "set", "--split", "test", "--tta", "flips"]
    assert best.main(["a", "b", "--out", "w.safetensors", *flags]) == OK
    assert given["write_winner"] == (folders, out, "last", True, Measurement("set", "test", "flips"))


def test_the_demo_serves_its_models_where_it_is_told(
    note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    note("petseg.inference.demo.models.load_models", ["models"])
    note("petseg.inference.demo.server.DemoServer", "server")
    note("shards.loopback.serve")
    assert demo.main(["--weights", "a.onnx", "b.safetensors", "--port", "8123", "--device", "cuda:1"]) == OK
    assert given["load_models"] == ((Path("a.onnx"), Path("b.safetensors")), "cuda:1")
    assert given["DemoServer"] == (["models"], 8123)
    assert given["serve"] == ("server", "drop pictures here")
    said = "name a weights file after --weights: make one with `python -m petseg.best`"
    assert refused(demo.main, ["--weights"], capsys) == said


def test_an_estimate_is_of_the_device_and_the_processes_that_are_named(
    note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    note("petseg.training.needs.estimate_needs", "needs")
    note("petseg.training.needs.render", "the table")
    flags = ["--device", "A100", "--gpu-gb", "40", "--world-size", "4", "--train.batch-size", "4"]
    assert estimate.main(flags) == OK
    config, *rest = given["estimate_needs"]
    assert (config.train.batch_size, rest) == (4, [4, "A100", 40.0])
    assert given["render"] == ("needs",)
    assert capsys.readouterr().out == "the table\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"world_size": 0}, "--world-size 0: must lie in 1..train.batch_size"),
        ({"world_size": 33}, "--world-size 33: must lie in 1..train.batch_size"),
        ({"gpu_gb": -1.0}, "--gpu-gb -1.0: must be positive"),
    ],
)
def test_an_estimate_of_what_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    config: Any = SimpleNamespace(train=SimpleNamespace(batch_size=32))
    estimate.Command(config, gpu_gb=0.0, world_size=32)
    with pytest.raises(ValueError, match=f"^{said}$"):
        estimate.Command(config, **fields)


@pytest.fixture
def weights(note: Note, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with w.safetensors, of 2 MB, and stand-ins for what loads and samples it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(bytes(2_000_000))
    note("petseg.inference.weights_file.load_model", ("header", "model"))
    note("petseg.inference.samples.read_samples", "read")
    note("petseg.inference.samples.drawn_samples", "drawn")
    return tmp_path


@pytest.mark.parametrize(
    ("suffix", "writer", "flags", "form", "samples"),
    [
        (".onnx", "write_onnx", [], Form("logits", dynamic_size=False), "drawn"),
        (".onnx", "write_onnx", ["--end-to-end"], Form("pixels", dynamic_size=False), "drawn"),
        (".pt2", "write_torch", ["--dynamic-size", "--shards", "set"], Form("logits", dynamic_size=True), "read"),
    ],
)
def test_an_export_has_the_form_that_is_asked_for(
    weights: Path, note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str], suffix: str, writer: str,
    flags: list[str], form: Form, samples: str,
) -> None:  # fmt: skip
    out = Path(f"w{suffix}")
    out.write_bytes(bytes(1_234_567))
    note(f"petseg.inference.exported.write.{writer}", SimpleNamespace(lines=lambda: ["compared"]))
    words = ["--weights", "w.safetensors", "--out", str(out), "--pictures", "5", "--split", "test", *flags]
    assert export.main(words) == OK
    assert given["load_model"] == (Path("w.safetensors"),)
    assert given[writer] == ("model", "header", form, samples, out)
    asked = {"read": ("header", "set", "test", 5), "drawn": ("header", 5)}[samples]
    assert given["read_samples" if samples == "read" else "drawn_samples"] == asked
    assert capsys.readouterr().out == f"compared\n{out}: 1.23 MB\n"


@pytest.mark.parametrize(
    ("out", "flags", "said"),
    [
        ("w.pt", [], "--out w.pt: its name must end in .onnx or .pt2, or have no suffix for a folder"),
        ("w.onnx", ["--pictures", "0"], "--pictures 0: must be at least 1"),
        ("gone/w.onnx", [], "--out gone/w.onnx: there is no folder "),
        *(("hub", flags, "--out hub: a folder for the hub takes no other flags than --weights")
          for flags in (["--end-to-end"], ["--dynamic-size"], ["--shards", "set"])),
    ],
)  # fmt: skip
def test_an_export_that_cannot_be_is_refused(
    weights: Path, given: dict[str, Any], capsys: pytest.CaptureFixture[str], out: str, flags: list[str], said: str
) -> None:
    line = refused(export.main, ["--weights", "w.safetensors", "--out", out, *flags], capsys)
    assert line.removesuffix(str(weights / "gone")) == said
    assert given == {}


def test_a_folder_for_the_hub_is_written_without_a_comparison(
    weights: Path, note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    note("petseg.inference.exported.hub.write_hub_folder")
    assert export.main(["--weights", "w.safetensors", "--out", "hub"]) == OK
    assert given["write_hub_folder"] == (Path("w.safetensors"), "header", Path("hub"))
    assert given.keys() == {"load_model", "write_hub_folder"}
    assert capsys.readouterr().out == "hub: model.safetensors, config.json, README.md\n"


def test_int8_is_calibrated_on_val_and_its_size_is_compared(
    weights: Path, note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("w.int8.onnx")
    out.write_bytes(bytes(500_000))
    note("petseg.inference.exported.int8.write_int8", SimpleNamespace(lines=lambda: ["compared", "Dice"]))
    words = ["int8", "--weights", "w.safetensors", "--shards", "set", "--out", str(out), "--pictures", "7"]
    assert compress.main(words) == OK
    assert given["read_samples"] == ("header", "set", "val", 7)
    assert given["write_int8"] == ("model", "header", "read", out)
    assert capsys.readouterr().out == "compared\nDice\nw.int8.onnx: 0.50 MB, 0.25 of w.safetensors\n"


POINTS = Points(
    "by hand", "test", "hash", "A CPU", 2,
    (
        Point("w.safetensors", 0.9, [0.88, 0.92], None, 4.341, 1_080_000, Speed(18.54, 60.04), 250.4),
        Point("w.onnx", 0.5, None, [-0.4, -0.5, 0.25], 1.0, 1_080_000, Speed(6.5, 150.0), 0.0),
    ),
)  # fmt: skip


def test_models_are_measured_as_the_flags_say_and_shown_as_a_table(
    weights: Path, note: Note, given: dict[str, Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "160")
    note("petseg.inference.points.measure_points", POINTS)
    note("petseg.inference.point_files.write_points")
    words = ["measure", "--weights", "w.safetensors", "w.onnx", "--shards", "set"]
    assert compress.main(words) == OK
    paths = (Path("w.safetensors"), Path("w.onnx"))
    assert given == {"measure_points": (paths, Measurement("set", "val", "none"), 9)}
    assert compress.main([*words, "--split", "test", "--repeats", "3", "--out", "points/one.json"]) == OK
    assert given["measure_points"] == (paths, Measurement("set", "test", "none"), 3)
    assert given["write_points"] == (POINTS, Path("points/one.json"))
    table = compress.table_of(POINTS)
    assert table.title == "test, by hand; A CPU, 2 threads"
    assert {str(column.header): [*column.cells] for column in table.columns} == {
        "model": ["w.safetensors", "w.onnx"],
        "Dice": ["0.9000 [0.8800, 0.9200]", "0.5000"],
        "minus the first": ["", "-0.4000 [-0.5000, +0.2500]"],
        "MB": ["4.34", "1.00"],
        "parameters": ["1,080,000", "1,080,000"],
        "ms a picture": ["18.5", "6.5"],
        "pictures/s": ["60.0", "150.0"],
        "peak MB": ["250", "0"],
    }
    assert "0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--out", "x.csv"], "--out x.csv: its name must end in .json"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert refused(compress.main, ["measure", "--weights", "w", "--shards", "set", *flags], capsys) == said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_predicts_its_share_as_the_flags_say(
    note: Note, given: dict[str, Any], tmp_path: Path, rank: int
) -> None:
    """Only the first one shows how far it is."""
    worked: list[Any] = []
    advances: list[int] = []

    class Stand:
        def __enter__(self) -> Callable[[int], None]:
            return advances.append

        def __exit__(self, *_: object) -> None: ...

    def run(items: Any, advance: Callable[[int], None]) -> None:
        worked.append(items)
        advance(len(items))

    note("petseg.inference.predictor.load_predictor", "predictor")
    note("petseg.inference.many.work.Work", SimpleNamespace(run=run))
    note("petseg.predict.progress", Stand())
    wanted = Wanted(
        tta="flips", keep_largest=True, min_area_px=3, precision="bf16", device="cuda:1", batch_size=5, threads=7
    )
    command = predict.Command(("photos",), (Path("a"), Path("b")), tmp_path, wanted)
    output, items = OutputFolder(tmp_path, ("masks",), coco="none"), ["one", "two"]
    predict.predict(command, output, items, Processes(rank, 2, 1))  # type: ignore[arg-type]
    assert given["load_predictor"] == ((Path("a"), Path("b")), "cuda:1", "bf16")
    assert given["Work"] == ("predictor", Options("flips", True, 3, 5), output, 5, 7, rank)
    assert given["progress"] == ("predicted", 2)
    assert worked == [items]
    assert advances == ([2] if rank == 0 else [])


@pytest.mark.parametrize(
    ("bad", "missing", "lines"),
    [
        (0, 30, ["30 pictures in {out}"]),
        (2, 10, ["28 pictures in {out}, 20 of them before", "not read: 0.png: odd", "not read: 1.png: odd"]),
        (20, 30, ["10 pictures in {out}", *(f"not read: {number}.png: odd" for number in range(20))]),
        (23, 30, ["7 pictures in {out}", *(f"not read: {number}.png: odd" for number in range(20)),
                  "and 3 more, listed in {out}/summary.csv"]),
    ],
)  # fmt: skip
def test_the_end_of_a_prediction_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: int, missing: int, lines: list[str]
) -> None:
    rows = [Row(str(number), f"{number}.png", error="odd") for number in range(bad)]
    predict.report(predict.Command(("photos",), (Path("w"),), tmp_path), 30, missing, rows)
    assert capsys.readouterr().out.splitlines() == [line.format(out=tmp_path) for line in lines]
