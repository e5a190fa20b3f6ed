"""The run's folder and what happens in it: notebooks in sequence, workers, jobs of a cluster, results."""
