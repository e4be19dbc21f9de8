"""Our trainer beside upstream's: step, operators, loader, validation, precision.

Imports everything but ``setup``.
"""
