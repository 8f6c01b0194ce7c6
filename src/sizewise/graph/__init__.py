"""Exported graphs: tracing, which channels go together, surgery on shapes, quantization annotations."""
