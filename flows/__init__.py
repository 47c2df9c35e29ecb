"""What runs: compositions of tasks, no work of their own."""
