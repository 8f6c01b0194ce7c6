"""Conformance kits, tiny models and a null runtime, shipped for third parties."""
