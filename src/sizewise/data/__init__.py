"""Batches as users write them, calibration samples, statistics over data."""
