"""Handing a run over to a scheduler: see slurm.py, and docs/launch.md."""
