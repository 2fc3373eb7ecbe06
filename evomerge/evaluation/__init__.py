"""Fitness: lm-eval tasks prepared once and scored many times, and Python functions."""
