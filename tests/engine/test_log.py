"""The log is what happened, also after a kill."""

import csv

from allspark.engine.log import RunLog, read_log


def test_each_class_has_a_column(tmp_path):
    with RunLog(tmp_path, classes=("sky", "tv monitor")) as log:
        log.write({"step": 1, "loss": 0.5})
        log.write({"step": 1, "miou": 0.25, "iou": {"sky": 0.25, "tv monitor": None}})
    with (tmp_path / "log.csv").open() as file:
        training, validation = csv.DictReader(file)
    assert training["iou sky"] == "" and training["loss"] == "0.5"
    assert validation["iou sky"] == "0.25" and validation["iou tv monitor"] == ""


def rows(*steps):
    return [{"step": step, "epoch": 0.1, "loss": step / 3, "iou": {"a": 0.5}} for step in steps]


def test_rows_come_back_and_the_table_agrees(tmp_path):
    with RunLog(tmp_path) as log:
        for row in rows(1, 2):
            log.write(row)
    assert read_log(tmp_path) == rows(1, 2)
    with (tmp_path / "log.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [1 / 3, 2 / 3]


def test_a_resumed_log_is_cut_to_the_checkpoint(tmp_path):
    with RunLog(tmp_path) as log:
        for row in rows(1, 2, 3):
            log.write(row)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    with RunLog(tmp_path, 2) as log:
        for row in rows(3, 4):
            log.write(row)
    assert read_log(tmp_path) == rows(1, 2, 3, 4)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5


def test_a_new_run_begins_an_empty_log(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(rows(1)[0])
    with RunLog(tmp_path):
        pass
    assert read_log(tmp_path) == []


def test_no_log_is_no_rows(tmp_path):
    assert read_log(tmp_path) == []
