"""Our trainer beside the unpatched upstream: step, operators, loader, validation, precision.

Imports everything but ``setup``.
"""
