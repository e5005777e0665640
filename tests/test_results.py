"""Recording: every row carries its conditions, nothing is measured twice, a foreign file is refused."""
import pytest

from zsq_lab.results import COLUMNS, SEEDS, Row, foundation, record, summary

ROWS = [Row("embedded/resnet20", "rtn-bn", bits, "quick", seed) for bits in (8, 4) for seed in SEEDS]


def test_rows_are_measured_once_and_an_interrupted_run_goes_on(tmp_path):
    file = tmp_path / "results.csv"
    assert len(record(ROWS[:2], file, limit=100, progress=False)) == 2
    before = file.read_text()
    table = record(ROWS[:4], file, limit=100, progress=False)
    assert len(table) == 4 and file.read_text().startswith(before)
    assert set(COLUMNS) == set(table.columns)
    assert (table["n_test"] == 100).all() and (table["threads"] >= 1).all()
    assert table["drop"].tolist() == pytest.approx((table["fp_accuracy"] - table["accuracy"]).tolist(), abs=0.011)


def test_the_summary_averages_over_the_seeds(tmp_path):
    lines = summary(record(ROWS, tmp_path / "results.csv", limit=50, progress=False))
    assert lines["seeds"].tolist() == [3, 3]
    assert (lines["spread"] >= 0).all()


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "notes.csv"
    file.write_text("day,weather\n1,rain\n")
    with pytest.raises(ValueError, match="columns"):
        record(ROWS[:1], file, progress=False)
    assert file.read_text() == "day,weather\n1,rain\n"


def test_the_foundation_has_no_row_twice():
    keys = [row.key() for row in foundation()]
    assert len(keys) == len(set(keys)) and {key[-1] for key in keys} == set(SEEDS)
