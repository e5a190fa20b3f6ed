"""Videos: frames at true seconds, read by decord or PyAV in processes that may be lost, decoded once."""
