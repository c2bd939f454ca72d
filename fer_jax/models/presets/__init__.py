"""Systems of the papers: fields, and the specification they stand for."""
