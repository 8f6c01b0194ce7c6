"""Per-example metrics, honest intervals, paired comparison."""
