"""Videos: frames at true seconds, decoded by decord or PyAV in worker processes that may hang or crash, and cached."""
