"""Owners: whose videos these are, by their ids, and where they are to be had, for the messages that miss them.

A file's form says nothing of that: other benchmarks are passed around in QVHighlights' or Charades-STA's. labkit itself
fetches nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from labkit.data.video_index import stem_of, trim_window

_TIME_R1 = "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
VIDEOS = {
    "charades-sta": "'wget https://ai2-public-datasets.s3-us-west-2.amazonaws.com/charades/Charades_v1_480.zip' (13 GB)",
    "qvhighlights": "'wget https://nlp.cs.unc.edu/data/jielei/qvh/qvhilights_videos.tar.gz' (134 GB)",
    "tvgbench": _TIME_R1,
    "timerft": _TIME_R1,
}
"""How to fetch the videos, by a part of a moment's `source` between slashes. Source: the benchmarks' own pages and
Time-R1's docs/DATA.md; the links have not been followed. ActivityNet's and NExT-GQA's owners give theirs on request."""

_QVHIGHLIGHTS_CLIP = 150.0
"""Seconds of a clip of QVHighlights, all 1,550 of the validation set."""
_TACOS = re.compile(r"s\d+-d\d+", re.ASCII)
_CHARADES = re.compile(r"[A-Z0-9]{5}", re.ASCII)


def fetch_videos(source: str) -> str:
    """The command that fetches the videos of a moment's `source`; empty where there is none.

    >>> fetch_videos("tvgbench/anet")
    "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
    >>> fetch_videos("mine")
    ''
    """
    return next((VIDEOS[part] for part in source.split("/") if part in VIDEOS), "")


def owners_of(videos: Iterable[str]) -> dict[str, str]:
    """The benchmark that each of a file's videos belongs to, by its id; "" where none is known by it.

    Charades' ids are five random characters: where all share their first two somebody has numbered videos of their own.

    >>> owners_of(["v_uqiMw7tQ1Cc", "AO8RW.mp4", "NUsG9BgSes0_210.0_360.0", "s13-d21.avi", "kitchen"]).values()
    dict_values(['activitynet', 'charades-sta', 'qvhighlights', 'tacos', ''])
    >>> owners_of(["CLIP1", "CLIP2"])
    {'CLIP1': '', 'CLIP2': ''}
    """
    owners = {video: _owner(stem_of(video)[0]) for video in videos}
    charades = {stem_of(video)[0] for video, owner in owners.items() if owner == "charades-sta"}
    if len(charades) > 1 and len(os.path.commonprefix(list(charades))) > 1 or all(map(str.isdigit, charades)):
        owners = {video: "" if owner == "charades-sta" else owner for video, owner in owners.items()}
    return owners


def _owner(stem: str) -> str:
    if (window := trim_window(stem)) and window[2] - window[1] == _QVHIGHLIGHTS_CLIP:
        return "qvhighlights"
    if stem.startswith("v_"):
        return "activitynet"
    if _TACOS.fullmatch(stem):
        return "tacos"
    return "charades-sta" if _CHARADES.fullmatch(stem) else ""
