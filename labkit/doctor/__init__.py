"""The doctor: what would keep a run from going well, and what it will cost; on top of everything that a run uses."""
