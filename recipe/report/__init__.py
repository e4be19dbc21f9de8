"""From the logs of a run to figures, plots, result.json and the files that Ascend's tools read.

Imports ``core``.
"""
