"""The log is what happened, also after a kill."""

import csv

from allspark.engine.sinks import FileLog, read_log


def test_whatever_is_logged_has_a_column(tmp_path):
    write(tmp_path, {"step": 1, "loss": 0.5}, {"step": 1, "miou": 0.25, "iou": {"sky": 0.25, "tv monitor": None}})
    with (tmp_path / "log.csv").open() as file:
        training, validation = csv.DictReader(file)
    assert training["iou sky"] == "" and training["loss"] == "0.5"
    assert validation["iou sky"] == "0.25" and validation["iou tv monitor"] == ""


def write(folder, *rows, step=0):
    log = FileLog(folder)
    log.begin(step, 10)
    for row in rows:
        log.row(row)
    log.end()


def rows(*steps):
    return [{"step": step, "epoch": 0.1, "loss": step / 3, "iou": {"a": 0.5}} for step in steps]


def test_rows_come_back_and_the_table_agrees(tmp_path):
    write(tmp_path, *rows(1, 2))
    assert read_log(tmp_path) == rows(1, 2)
    with (tmp_path / "log.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [1 / 3, 2 / 3]


def test_a_resumed_log_is_cut_to_the_checkpoint(tmp_path):
    write(tmp_path, *rows(1, 2, 3))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    write(tmp_path, *rows(3, 4), step=2)
    assert read_log(tmp_path) == rows(1, 2, 3, 4)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5


def test_a_new_run_begins_an_empty_log(tmp_path):
    write(tmp_path, *rows(1))
    write(tmp_path)
    assert read_log(tmp_path) == []


def test_no_log_is_no_rows(tmp_path):
    assert read_log(tmp_path) == []


def test_a_new_number_of_a_method_gets_a_column_when_it_comes(tmp_path):
    write(tmp_path, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "mask_ratio": 0.25}, {"step": 3, "loss": 0.25})
    with (tmp_path / "log.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["mask_ratio"] for row in table] == ["", "0.25", ""]
    assert [float(row["loss"]) for row in table] == [1, 0.5, 0.25]
