"""Several processes that do one stage together: launch, process group, shutdown, and preemption."""
