"""Runs the commands of README and docs as typed by a reader: ``make pages``."""
