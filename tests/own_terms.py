"""A reward and a filter of a user's own, as tests name them in parameters; nothing imports this file."""


def boundary(chain, moment, spec):
    """1 where the answer's borders are the truth's, 0 from a quarter of the clip on."""
    if chain.answer is None:
        return 0.0, "no answer"
    truth = moment.windows[0]
    off = (abs(chain.answer.start - truth.start) + abs(chain.answer.end - truth.end)) / 2
    return max(0.0, 1 - 4 * off / moment.duration), f"borders {off:.1f} s away on average"


def short_thoughts(chain, moment, rollout):
    words = len(chain.text.split())
    return words <= 30, f"{words} words"
