"""Compilation of the loops that numpy has no name for."""

import numba


def jit(function):
    """`numba.njit`, with the machine code kept on disk wherever numba finds a directory that it may write to.

    A compiled function must call only compiled functions of its own file: numba does not notice changes in others.
    """
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available": neither beside the source nor in the user's cache directory
        return numba.njit(error_model="numpy")(function)
