"""benchmarks/table.py."""

import sys

import pytest

from benchmarks import table


@pytest.mark.parametrize(("words", "file"), [([], "sets.csv"), (["--against", "rad"], "metrics.csv")])
def test_a_folder_without_scores_is_one_line(tmp_path, monkeypatch, words, file):
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(tmp_path), "--metric", "mse", *words])
    with pytest.raises(SystemExit, match=f"^no .*{file}: score the results first, python -m rad.evaluation --results"):
        table.main()
