"""Figures: records in, plotly figures out."""
