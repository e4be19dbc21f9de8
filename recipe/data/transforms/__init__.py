"""Faster forms of upstream's transforms, whose samples equal upstream's bit by bit."""
