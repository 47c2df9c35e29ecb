"""What runs: compositions of tasks, no work of their own."""

from tasks.redact import veil_logs

veil_logs()  # before Prefect keeps a line of what runs here
