"""Claims of papers: run as they were made, and run honestly.

`claim` says what a claim is and makes its two configs, `running` trains and
measures them, `table` shows claimed and honest figures side by side.
"""

from fer_jax.claims.claim import (
  Claim,
  Mark,
  chosen,
  config_of,
  inferred,
  stated,
)

__all__ = ['Claim', 'Mark', 'chosen', 'config_of', 'inferred', 'stated']
