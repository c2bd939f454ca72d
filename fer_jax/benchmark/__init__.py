"""Timing on this machine, against peers measured in the same run."""
