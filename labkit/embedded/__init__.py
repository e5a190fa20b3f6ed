"""The toy lab: a generated world of real video files and the tiny base that is asked about it. Real models never need it."""
