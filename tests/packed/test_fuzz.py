"""A small dose of the fuzz target; `python tests/fuzz_packed.py MODEL` takes more."""

from fuzz_packed import fuzz


def test_damaged_models_fail_cleanly(converted):
    opened = fuzz(converted, rounds=400, seed=0)
    assert 0 < opened < 400
