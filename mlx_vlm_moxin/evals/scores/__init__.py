"""Scores of single answers and of whole tasks; independent of any model."""
