"""After the training: trained models, and what they predict for pictures and videos.

Imports ``engine``, ``models``, ``data`` and ``core``.
"""
