"""Runs the commands of README and docs as a reader would type them: ``make pages``."""
