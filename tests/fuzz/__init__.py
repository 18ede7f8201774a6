"""Fuzzers of every parser that reads what others have written (docs/security.md)."""
