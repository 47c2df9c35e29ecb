"""The commands of `redoubt`. Each loads what it needs when it is called, so that help is there at once."""

import click

from flows.commands.checking import check, evaluate, reattack, selftest
from flows.commands.doctor import doctor
from flows.commands.evidence import reproduce, transfer, verify
from flows.commands.keeping import deliver
from flows.commands.posture import compare, explain, findings, history, report
from flows.commands.running import config, recipes, run, suites, ui
from flows.commands.serving import adopt, deploy, harden, rollback, serve, watch
from flows.commands.working import worker

COMMANDS: tuple[click.Command, ...] = (
    *(run, evaluate, reattack, check),
    *(history, compare, report, findings, explain, transfer),
    *(verify, reproduce, deliver),
    *(adopt, watch, harden, rollback, deploy, serve, worker, doctor),
    *(recipes, suites, config, selftest, ui),
)
