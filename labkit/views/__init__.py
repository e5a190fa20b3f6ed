"""How records are looked at: figures of training, of stages and of single chains. Views read records, never train."""

from labkit.views.figures.answers import answer_places, before_after, lengths
from labkit.views.figures.chain_strip import Film, chain_picture, film, gallery, through_stages
from labkit.views.figures.chains import funnel, iou_by_step, r1_curves, ridgelines
from labkit.views.figures.failures import atlas
from labkit.views.figures.interventions import (
    anchors_forbidden,
    answer_by_step,
    answer_follows,
    frames_edited,
    shuffled_null,
)
from labkit.views.figures.renderer import setup, show
from labkit.views.figures.scoreboard import over_seeds, scoreboard, under_rules
from labkit.views.figures.training import blindness, harvest_funnel, sft_loss, stage_comparison, training_curves
from labkit.views.figures.words import true_words, words_along_training, words_table

__all__ = [
    "Film",
    "anchors_forbidden",
    "answer_by_step",
    "answer_follows",
    "answer_places",
    "atlas",
    "before_after",
    "blindness",
    "chain_picture",
    "film",
    "frames_edited",
    "funnel",
    "gallery",
    "harvest_funnel",
    "iou_by_step",
    "lengths",
    "over_seeds",
    "r1_curves",
    "ridgelines",
    "scoreboard",
    "setup",
    "sft_loss",
    "shuffled_null",
    "show",
    "stage_comparison",
    "through_stages",
    "training_curves",
    "true_words",
    "under_rules",
    "words_along_training",
    "words_table",
]
