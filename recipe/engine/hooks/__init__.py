"""Hooks that equip() puts into a config."""
