"""The chain explorer and the video scrubber: widgets, what they are sent, and the page that draws it."""
