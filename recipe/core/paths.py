"""Folders that other modules start from. Standard library only, Python 3.8 on."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'recipe'  # also a program, see recipe/__main__.py
CONFIGS = ROOT / 'configs'
TOOLS = ROOT / 'tools'
OUTPUT = ROOT / 'test' / 'output'
