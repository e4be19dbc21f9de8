"""How it is trained: config, weights, devices, batch, runner, metric; and the replay of one step.

Imports ``data``, ``models``, ``upstream`` and ``core``.
"""
