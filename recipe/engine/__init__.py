"""What is trained: config, weights, devices, batch; and the replay of one step.

Imports ``data``, ``upstream`` and ``core``.
"""
