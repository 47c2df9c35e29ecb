"""Processes for runs that are there at once: forked from one that has loaded everything, and holds nothing of any run.

Loading torch, MLflow, Prefect and Great Expectations takes longer than many an evaluation. A fork of a process that
has loaded them costs milliseconds, and is as fresh as a new one: environment, working folder, seeds, modules of the
user's and memory are the run's own and go with it. So nothing can leak from one run into the next.

    worker --starts--> launcher (one a run; what Prefect watches, signals and kills)
       |                  | asks over a socket, with its environment, working folder, standard output and error
       +--keeps----> mother --forks--> the run (prefect.engine, as in a process of its own)

The mother loads Redoubt's code once. She looks before each fork whether a file of it has changed since, and makes way
for a successor if so. Modules that users bring are loaded by the run, never by her. Where no mother answers, the
launcher becomes the process that Prefect would have started.
"""
