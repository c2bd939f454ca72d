"""The PNG files of a report, collected while its page is written."""

import dataclasses

from fer_jax.evaluation import page
from fer_jax.evaluation.page import Html


@dataclasses.dataclass(frozen=True)
class Figures:
  """PNG files by name; parts of a page keep theirs under a prefix.

  Attributes:
    files: shared by all parts of a report.
    prefix: of the names that this part adds.
  """

  files: dict[str, bytes]
  prefix: str = ''

  def within(self, prefix: str) -> 'Figures':
    """The same files, further names under a longer prefix."""
    return Figures(self.files, self.prefix + prefix)

  def keep(self, name: str, png: bytes) -> None:
    """Adds a file that the page itself does not show."""
    self.files[self.prefix + name] = png

  def plot(self, name: str, png: bytes, alt: str) -> Html:
    """Adds a file and shows it."""
    self.keep(name, png)
    return page.figure(png, alt)
