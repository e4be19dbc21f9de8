"""Turns the logs of a run into figures, plots, result.json and the files that Ascend's tools read.

Imports ``core``.
"""
