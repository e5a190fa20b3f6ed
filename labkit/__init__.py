"""labkit: an interactive lab for temporal video grounding with timestamp anchors (TAR-TVG)."""
