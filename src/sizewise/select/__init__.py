"""Which scale a task needs: learning curves, diagnoses, scenarios; works on numbers and records, never imports torch."""
