"""Evaluates a trained model: predictions, metrics, the official evaluation, the archive for the test server.

Imports predict, report, engine, models, data and core. ``recipe.launch.evaluation`` starts it.
"""
