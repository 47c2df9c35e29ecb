"""What a command ends with: the exit code says what a pipeline must know."""

EXIT = {"pass": 0, "fail": 1, "cannot tell": 2}
WRONG_INPUT, BROKE = 3, 4
