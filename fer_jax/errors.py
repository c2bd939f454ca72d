"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
  """What the user gave cannot be used.

  The message is one line that names the file, row, field or value and says
  what was expected. The command line prints it without a traceback.
  """
