"""What runs show of themselves, as tests look at it."""

from fer_jax.training import heartbeat, journal


def events(workdir):
  """The names of a workdir's events, oldest first."""
  return [event['event'] for event in journal.read(workdir)]


def beats(monkeypatch):
  """A list that heartbeats to come are added to, each as it is told."""
  heard, beat = [], heartbeat.Heartbeat.beat

  def hear(self, **where):
    heard.append(where)
    beat(self, **where)

  monkeypatch.setattr(heartbeat.Heartbeat, 'beat', hear)
  return heard
