"""Attacks that do not end as they should."""

import os
import time


def sleeps(model, x, y, *, threat, rng):
    time.sleep(1000)


def spins(model, x, y, *, threat, rng):
    while True:
        pass


def asks_for_ever(model, x, y, *, threat, rng):
    while True:
        model(x)


def exits(model, x, y, *, threat, rng):
    os._exit(0)
