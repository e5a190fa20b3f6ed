"""Owners: where the videos of a benchmark are to be had, for the messages that miss them; labkit itself fetches nothing."""

from __future__ import annotations

_TIME_R1 = "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
VIDEOS = {
    "charades-sta": "'wget https://ai2-public-datasets.s3-us-west-2.amazonaws.com/charades/Charades_v1_480.zip' (13 GB)",
    "qvhighlights": "'wget https://nlp.cs.unc.edu/data/jielei/qvh/qvhilights_videos.tar.gz' (134 GB)",
    "tvgbench": _TIME_R1,
    "timerft": _TIME_R1,
}
"""How to fetch the videos, by the `source` of a moment before its slash. Source: the benchmarks' own pages and Time-R1's
docs/DATA.md; the links have not been followed. ActivityNet's and NExT-GQA's owners give theirs on request."""


def fetch_videos(source: str) -> str:
    """The command that fetches the videos of a moment's `source`; empty where there is none.

    >>> fetch_videos("tvgbench/anet")
    "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
    >>> fetch_videos("mine")
    ''
    """
    return VIDEOS.get(source.partition("/")[0], "")
