"""Trains a model: config, weights, devices, batch, runner and metric. Also replays single steps.

Imports ``data``, ``models``, ``upstream`` and ``core``.
"""
