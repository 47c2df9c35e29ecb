"""What the signs of soundness cost on the proving ground, what they say, and what the escalation makes of the number.

    REDOUBT_DATA=<folder with mnist/, cifar10/ and tabular/> .venv/bin/python infra/bench/signs.py [--suite quick]

Nobody planted a fault into these models, but some are masked: quantised, saturated, or trained against few steps.
"""

import argparse

import ground
import torch
from engine import CASES

from tasks.metrics import examine, measure, security_curve


def main() -> None:
    """Print a row per case: robust accuracy before and after, the signs' share of the passes, what fired."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--only", default="", help="cases whose model, role, kind or threat holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':19}{'threat':15}{'kind':9}{'before':>7}{'after':>7}{'signs':>7}  {'number':8}fired")
    for case in (case for case in CASES if options.only in str(case)):
        model, (x, y) = ground.model(case.model), ground.images(case.model, case.n)
        found, curve = security_curve(
            model, x, y, outcomes=measure(model, x, y, threat=case.threat, suite=options.suite)
        )
        after, _, soundness = examine(model, x, y, outcomes=found, curve=curve)
        fired = [sign.name for sign in soundness.signs if sign.first == "alarm"]
        print(
            f"{case.model:19}{case.threat!s:15}{case.kind:9}{found.robust_accuracy:7.3f}{after.robust_accuracy:7.3f}"
            f"{soundness.share:7.1%}  {'sound' if soundness.sound else 'void':8}{', '.join(fired)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
