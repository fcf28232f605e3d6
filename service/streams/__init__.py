"""Streams over the wire: who is told what, which row is whose, and how it survives."""
