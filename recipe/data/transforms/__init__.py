"""Faster forms of upstream's transforms, which give the same samples bit by bit."""
