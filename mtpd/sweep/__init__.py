"""Sweeps: orders of teachers, methods and seeds of one recipe, as jobs on this machine or on SLURM."""
