"""Scoring: predictions on a data set, and how reliable their scores are."""
