"""Scoring: any model's predictions in, figures that can be believed out; on top of chain and data."""
