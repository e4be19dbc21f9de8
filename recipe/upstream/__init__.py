"""The pinned upstreams: fetch, apply, export and check the patches. Standard library, git and pip; Python 3.8 on.

Imports ``core``.
"""
