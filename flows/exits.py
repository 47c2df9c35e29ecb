"""What a command ends with: the exit code says what a pipeline must know."""

from collections.abc import Collection

EXIT = {"pass": 0, "fail": 1, "cannot tell": 2}
WRONG_INPUT, BROKE = 3, 4
WORST_FIRST = (EXIT["fail"], BROKE, EXIT["cannot tell"])  # what is known to be weak stands before what is not known


def worst(codes: Collection[int]) -> int:
    """What several reports come to together: 0 where every one passes, or there is none."""
    return next((code for code in WORST_FIRST if code in codes), EXIT["pass"])
