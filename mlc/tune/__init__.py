"""Tuning records and how compiling uses them."""
