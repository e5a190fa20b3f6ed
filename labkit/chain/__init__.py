"""What a chain is and how good it is: spans, the one parser, the reward terms and the metrics.

Pure Python and numpy. Every other room stands on this one, and reward, evaluation and views all read a
model's text through `anchors.parse`, so that they can't disagree about what it said.
"""
