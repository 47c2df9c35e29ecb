"""Verbs orchestrate, nouns compute: a verb's module is a Prefect task, a noun's package is plain Python."""
