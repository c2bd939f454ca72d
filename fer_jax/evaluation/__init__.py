"""From logits to figures, and from a workdir's files to a report."""
