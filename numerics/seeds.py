"""One rule for seeds, wherever one is taken."""

import operator

import numpy as np


def checked_seed(seed: int | None) -> int:
    """A seed as a plain integer; a fresh one for None.

    Args: seed: an integer of Python's or numpy's, not negative; or None.
    Raises: ValueError for anything else.

    >>> checked_seed(np.int64(3))
    3
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1)
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"a seed is a whole number from 0 to 2^63 − 1, or None for a fresh one, not {seed!r}")
    return number


def generator(seed: int | None, *stream: int) -> np.random.Generator:
    """Random numbers of a seed; different tuples of integers give unrelated streams."""
    return np.random.default_rng((checked_seed(seed), *stream))
