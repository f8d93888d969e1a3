"""The table of mutations does not go stale."""

from __future__ import annotations

from pathlib import Path

from house.mutations import CPP, PYTHON, stale

TESTS = Path(__file__).parent


def test_what_a_mutation_changes_is_there_once() -> None:
    assert stale() == []


def test_mutations_change_something_and_name_tests_that_are_there() -> None:
    table = [*PYTHON, *CPP]
    assert len({(m.file, m.old, m.new) for m in table}) == len(table)
    for mutation in table:
        assert mutation.old != mutation.new, mutation
        files = [word for word in mutation.tests.split() if word.endswith(".py")]
        assert files, mutation
        assert all((TESTS / file).is_file() for file in files), mutation
