"""Data: files and data sets -> examples; the official metric; questions without an answer."""
