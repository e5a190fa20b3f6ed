"""Several processes that do one stage together: how they start, meet, end, and stop on notice."""
