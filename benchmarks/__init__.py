"""Measurements of time and memory; each file is one command."""
