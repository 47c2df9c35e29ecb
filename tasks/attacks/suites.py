"""The suites that ship: the ordered attacks with all their parameters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tasks.attacks.config import AttackConfig, End, Suite
from tasks.attacks.threat import Norm
from tasks.errors import WrongInput
from tasks.lookup import lookup


def _row(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, **how)


def _nearest(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, samples="nearest", **how)


def _drawn(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, samples="drawn", **how)


def _spare(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, samples="spare", **how)


def _winding(name: str, params: dict[str, Any], **how: Any) -> AttackConfig:
    return AttackConfig(name=name, params=params, samples="winding", near=0.15, growth=1.0, **how)


SPARSE: tuple[Norm, ...] = ("l0", "l0-pixels")
LONG: tuple[Norm, ...] = ("l2", "l1")  # norms under which the box's corners are in the way
BOX: tuple[Norm, ...] = ("linf", "unbounded")  # each feature goes as far as it may
FLAT: tuple[Norm, ...] = (*BOX, *SPARSE)

LOOKED = 3  # classes of a sample, beside the likeliest, whose slopes are asked for before any is aimed at
NEARLY = 0.66  # of a sample's clean margin: every class of which slopes leave so little is tried before the end
QUICK = 40.0  # passes a sample, at most, with all that is asked before and after a cell's search
# In L1 a sample falls to the tenth try as readily as to the first: turns do not grow, and starts differ.
EVEN = {"share": 0.1, "near": 0.07, "growth": 1.0, "fewest": 32}
BRIEF = {"near": 0.15, "growth": 1.0}  # of the suite "quick", in L2 too
ROUGH = 16.0  # there every other class counts, which finds more within few steps, and no more within many
VARIED = ("toward", "borrowed", "noise", "thinned")
MIXED = "thinned borrowed stripes noise"
# Of the suite "warm": how a turn's samples are chosen, the nearest one or more of them, or the same few each time.
SHARP = {"share": 0.002, "near": 0.005, "fewest": 1}
BROAD = {"share": 0.04, "near": 0.05, "fewest": 4}
EACH_AGAIN = {"share": 0.02, "near": 0.1, "fewest": 4, "growth": 1.0}

SUITES: dict[str, Suite] = {
    "quick": Suite(
        name="quick",
        attacks=(
            _row("crossings", {"steps": 3, "halvings": 7, "tries": 1}, norms=LONG),
            _row("margin", {"steps": 6}, norms=FLAT),
            _row("margin", {"steps": 8, "cut": 5, "soft": ROUGH}, norms=("l2",)),
            _row("margin", {"steps": 10, "cut": 5}, norms=("l1",)),
            _row("sweep", {"points": 16}, free=1),
            _drawn("classes", {"steps": 6, "cut": 2, "pairs": 0.5, "slopes": LOOKED}, share=1.0, norms=BOX),
            _drawn("classes", {"steps": 6, "cut": 2, "pairs": 0.5}, share=1.0, norms=(*SPARSE, "l2")),
            _drawn("classes", {"steps": 8, "cut": 4, "pairs": 0.3}, share=1.0, norms=("l1",)),
            _drawn("restarts", {"starts": "toward nearest", "steps": 10}, share=0.04, norms=FLAT),
            *(
                _drawn(
                    "restarts", {"starts": s, "steps": 12, "cut": 6, "soft": ROUGH}, share=0.15, **BRIEF, norms=("l2",)
                )
                for s in ("nearest", "noise")
            ),
            *(
                _drawn("restarts", {"starts": s, "steps": 20, "cut": 8}, share=0.15, **BRIEF, norms=("l1",))
                for s in VARIED
            ),
            _drawn("square", {"queries": 100, "burst": 50, "horizon": 100}, share=0.02),
            _spare("classes", {"steps": 20, "cut": 4, "pairs": 0.5}, share=1.0, norms=FLAT),
            _spare("restarts", {"starts": "nearest", "steps": 20}, share=0.06, norms=FLAT),
            _winding("classes", {"steps": 20, "cut": 4, "pairs": 0.5}, share=1.0, norms=BOX),
            _winding("restarts", {"starts": "nearest", "steps": 20, "cut": 8}, share=0.1, norms=BOX),
            _winding("restarts", {"starts": "noise", "steps": 20, "cut": 8}, share=0.1, norms=BOX),
            _nearest("restarts", {"starts": "nearest blocks noise", "steps": 20}, share=0.02, fewest=4, norms=BOX),
        ),
        again=0.25,
        passes=27,
        whole=QUICK,
        ends={"l2": End(again=None, whole=QUICK), "l1": End(again=8, whole=QUICK)},
    ),
    "standard": Suite(
        name="standard",
        attacks=(
            _row("crossings", {}, norms=LONG),
            _row("margin", {"steps": 8}),
            _row("sweep", {}, free=1),
            _row("sigma-zero", {"steps": 100}, norms=SPARSE),
            _row("apgd-ce", {"steps": 50}, norms=SPARSE),
            _row("greedy", {"width": 64}, norms=SPARSE),
            _row("restarts", {"starts": "toward nearest", "steps": 20}, norms=SPARSE),
            _drawn("classes", {"steps": 10, "cut": 3, "pairs": 0.5, "slopes": LOOKED}, share=1.0, norms=BOX),
            _drawn("classes", {"steps": 10, "cut": 3, "slopes": LOOKED, "reach": NEARLY}, share=1.0, norms=BOX),
            _drawn("classes", {"steps": 10, "cut": 3, "pairs": 1.0}, share=1.0, norms=SPARSE),
            _drawn("classes", {"steps": 10, "cut": 3, "pairs": 4.0}, share=1.0, norms=("l2",)),
            _drawn("classes", {"steps": 10, "cut": 4, "pairs": 1.0}, share=1.0, norms=("l1",)),
            _drawn("restarts", {"starts": "toward nearest blocks noise", "steps": 20}, share=0.05, norms=FLAT),
            _drawn("restarts", {"starts": "nearest noise", "steps": 60}, share=0.02, norms=SPARSE),
            _drawn("fab", {"steps": 15, "count": 2}, share=0.02, norms=SPARSE),
            _drawn("restarts", {"starts": "toward", "steps": 12, "cut": 6}, norms=("l2",)),
            *(
                _drawn("restarts", {"starts": s, "steps": 16, "cut": 7}, share=0.08, norms=("l2",))
                for s in ("nearest", "noise")
            ),
            *(_drawn("restarts", {"starts": s, "steps": 16, "cut": 7}, **EVEN, norms=("l1",)) for s in VARIED),
            _drawn("restarts", {"starts": "thinned", "steps": 40, "cut": 15}, **EVEN, norms=("l1",)),
            _drawn("fmn", {"steps": 30}, share=0.08, norms=("l2",)),
            _spare("fab", {"steps": 40, "count": 1}, share=0.08, norms=LONG),
            _drawn("square", {"queries": 5000, "burst": 50, "horizon": 2000}, share=0.03, norms=BOX),
            _drawn("square", {"queries": 5000, "burst": 100, "horizon": 2000}, share=0.03, norms=(*SPARSE, *LONG)),
            _spare("restarts", {"starts": "nearest noise", "steps": 60}, share=0.02, norms=BOX),
            _spare("fab", {"steps": 15, "count": 2}, share=0.02, norms=BOX),
            _spare("restarts", {"starts": "toward", "steps": 14}, norms=FLAT),
            _spare("restarts", {"starts": "nearest", "steps": 20}, norms=(*FLAT, "l2")),
            _spare("restarts", {"starts": "blocks stripes", "steps": 20}, norms=FLAT),
            _spare("restarts", {"starts": "noise", "steps": 40}, norms=SPARSE),
            _spare("apgd-ce", {"steps": 100}, share=0.05, norms=FLAT),
            _spare("restarts", {"starts": "noise", "steps": 100}, share=0.05, norms=BOX),
            _spare("margin", {"steps": 100}, share=0.04, norms=FLAT),
            _winding("restarts", {"starts": "thinned noise", "steps": 20, "cut": 8}, share=0.1, norms=BOX),
            _winding("classes", {"steps": 20, "cut": 4, "pairs": 1.0}, share=0.1, norms=BOX),
            _winding("restarts", {"starts": MIXED, "steps": 40, "cut": 14}, share=0.1, norms=BOX),
        ),
        again=0.5,
        passes=600,
        ends={
            **{norm: End(again=0.3, passes=600) for norm in BOX},
            "l2": End(again=2, passes=150),
            "l1": End(again=5, passes=70),
        },
    ),
    "warm": Suite(  # for measure(..., warm=...): what is left to do once the nearest points are known
        name="warm",
        attacks=(
            _nearest("restarts", {"starts": "nearest", "steps": 1}, share=0.08, norms=FLAT),
            _nearest("restarts", {"starts": "toward", "steps": 8}, share=0.08, norms=("l2",)),
            _nearest("margin", {"steps": 1}, share=0.25, norms=(*FLAT, "l2")),
            _nearest("restarts", {"starts": "nearest", "steps": 12}, share=0.06, norms=("l2",)),
            _nearest("margin", {"steps": 8}, share=0.14, norms=("l1",)),
            _nearest("classes", {"steps": 10, "cut": 3, "pairs": 0.5, "slopes": LOOKED}, share=0.12, norms=BOX),
            _nearest("classes", {"steps": 10, "cut": 3, "pairs": 1.0}, share=0.085, norms=SPARSE),
            _nearest("classes", {"steps": 10, "cut": 3, "pairs": 9.0}, share=0.015, fewest=4, norms=FLAT),
            _nearest("classes", {"steps": 8, "cut": 4, "pairs": 9.0}, share=0.02, fewest=4, norms=("l1",)),
            *(_drawn("restarts", {"starts": s, "steps": 14}, **SHARP, norms=FLAT) for s in ("toward", "nearest")),
            _drawn("classes", {"steps": 10, "cut": 3, "pairs": 2.0}, share=0.06, fewest=4, norms=("l2",)),
            *(
                _drawn("restarts", {"starts": s, "steps": 16, "cut": 7}, **BROAD, norms=("l2",))
                for s in ("nearest", "toward", "noise")
            ),
            *(_drawn("restarts", {"starts": s, "steps": 16, "cut": 7}, **EACH_AGAIN, norms=("l1",)) for s in VARIED),
        ),
        again=None,
        effort=2,
        ends={"l2": End(again=None, effort=40), "l1": End(again=None, effort=150)},
    ),
    "deep": Suite(
        name="deep",
        attacks=(
            _row("crossings", {"halvings": 10, "tries": 5}, norms=LONG),
            _row("margin", {"steps": 20}),
            _row("sweep", {"points": 1024}, free=1),
            _row("apgd-ce", {"steps": 100}),
            _row("sigma-zero", {"steps": 300}, norms=SPARSE),
            _row("greedy", {"width": 1024}, norms=SPARSE),
            _row("classes", {"steps": 20}),
            _row("restarts", {"starts": "toward nearest blocks stripes noise", "steps": 40}),
            _drawn("restarts", {"starts": "toward nearest", "steps": 60}, share=0.2),
            _drawn("restarts", {"starts": "blocks stripes noise", "steps": 40}, share=0.2),
            _drawn("fab", {"steps": 60, "count": 9}, share=0.2),
            _drawn("square", {"queries": 5000, "burst": 250, "horizon": 1000}, share=0.2),
            _row("hopskipjump", {"queries": 2000}),
        ),
        again=3,
        passes=20_000,
    ),
}


def as_suite(suite: "str | Suite | Sequence[str | AttackConfig]") -> Suite:
    """A suite from its name, or from a list of attacks. Raises UnknownPart or WrongInput before anything runs."""
    if isinstance(suite, str):
        suite = lookup("suite", suite, SUITES)
    if not isinstance(suite, Suite):
        suite = Suite(name="custom", attacks=_listed(suite))
    for attack in suite.attacks:
        attack.function()
    return suite


def _listed(attacks: object) -> tuple[AttackConfig, ...]:
    """The attacks of a list, in which a name stands for the attack with its defaults. Raises WrongInput."""
    if not isinstance(attacks, Iterable) or isinstance(attacks, Mapping | BaseModel | bytes):
        raise WrongInput(
            f"suite is a {type(attacks).__name__}. Write suite='standard', a Suite, or a list, e.g. suite=['pgd']."
        )
    rows = []
    for attack in attacks:
        if not isinstance(attack, str | AttackConfig | Mapping):
            raise WrongInput(
                f"the suite holds {attack!r}, a {type(attack).__name__}. Write an attack's name, an AttackConfig, or "
                "for one of your own 'package.module:function'."
            )
        rows.append(AttackConfig(name=attack) if isinstance(attack, str) else AttackConfig.model_validate(attack))
    if not rows:
        raise WrongInput("an empty list of attacks measures nothing. Write suite='standard'.")
    return tuple(rows)
