"""The sections of a report that show faces: mistakes and attention."""

from collections.abc import Sequence

import numpy as np

from fer_jax.evaluation import page, pictures, plots, wording
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.page import Html
from fer_jax.evaluation.workdir import Evaluation, Examples, Pictures


def sections(evaluation: Evaluation, figures: Figures) -> list[Html]:
  """Worst mistakes, and attention where the model has it."""
  examples = evaluation.examples
  if examples is None:
    missing = f'There are no example images of the {evaluation.split} split.'
    return [page.tag('p', missing, class_='small')]
  names = evaluation.metrics['class_names']
  parts = [_mistakes(evaluation.split, examples.mistakes, names, figures)]
  if examples.attended is not None:
    parts.append(_attention(evaluation.split, examples, names, figures))
  return parts


def _mistakes(
  split: str, mistakes: Pictures | None, names: Sequence[str], figures: Figures
) -> Html:
  title = f'Worst mistakes on {split}'
  if mistakes is None:
    return page.section(title, page.tag('p', 'No example is wrong.'))
  faces, images, captions = [], [], []
  for index in range(len(mistakes)):
    image = pictures.still(mistakes.images[index], _mask(mistakes, index))
    true, said, share = _verdict(mistakes, index, names)
    identity = str(mistakes.ids[index])
    images.append(image)
    captions.append(f'{true}\nsaid {said}, {share}')
    faces.append(
      page.figure(
        pictures.png(image),
        f'Example {identity}: {true}, taken for {said}',
        page.tag('strong', true),
        page.line(f'said {said}, {share}'),
        page.line(page.code(identity)),
      )
    )
  figures.keep(
    'mistakes.png', plots.contact_sheet(images, captions, title=title)
  )
  return page.section(
    title,
    page.tag(
      'p',
      'The wrong predictions with the highest loss: the true label in bold, '
      'then what the model said and how sure it was. A label may itself be '
      'doubtful.',
    ),
    page.tag('div', *faces, class_='faces'),
    page.tag(
      'p',
      'Real faces are personal data: show a report of a real data set to '
      'those alone who may see its images.',
      class_='small',
    ),
  )


def _attention(
  split: str, examples: Examples, names: Sequence[str], figures: Figures
) -> Html:
  attended = examples.attended
  assert attended is not None
  assert attended.attention is not None
  faces, images, captions = [], [], []
  for index in range(len(attended)):
    image = _attention_picture(attended, index, examples.token_grid)
    if image is None:
      continue
    true, said, share = _verdict(attended, index, names)
    identity = str(attended.ids[index])
    peak = wording.percent(attended.attention[index].max())
    images.append(image)
    captions.append(f'{true}\nsaid {said}, {share}')
    faces.append(
      page.figure(
        pictures.png(image),
        f'Attention on example {identity}: {true}, taken for {said}',
        page.tag('strong', true),
        page.line(f'said {said}, {share}; largest weight {peak}'),
      )
    )
  title = f'Attention on {split}'
  if not faces:
    missing = "The attention weights do not lie on the image's tokens."
    return page.section(title, page.tag('p', missing))
  figures.keep(
    'attention.png', plots.contact_sheet(images, captions, title=title)
  )
  how = (
    'Under each frame of the clip is its attention weight.'
    if attended.images.ndim == 5
    else 'Beside each face are its attention weights, from dark to bright, '
    'the brightest being the largest of that face.'
  )
  return page.section(
    title,
    page.tag(
      'p',
      f'{how} One example of each class, drawn at random. The tokens have '
      'passed a recurrent layer, so a weight belongs to a place and to what '
      'was read before it: a hint, not an explanation.',
    ),
    page.tag('div', *faces, class_='faces wide'),
  )


def _attention_picture(
  attended: Pictures, index: int, token_grid: tuple[int, int] | None
) -> np.ndarray | None:
  """None where the weights cannot be laid on the image."""
  assert attended.attention is not None
  image, weights = attended.images[index], attended.attention[index]
  if image.ndim == 4:
    if len(weights) != len(image):
      return None
    return pictures.attention_on_frames(image, weights, _mask(attended, index))
  if token_grid is None or weights.size != np.prod(token_grid):
    return None
  return pictures.attention_on_image(image, weights, token_grid)


def _mask(examples: Pictures, index: int) -> np.ndarray | None:
  return None if examples.frame_mask is None else examples.frame_mask[index]


def _verdict(
  examples: Pictures, index: int, names: Sequence[str]
) -> tuple[str, str, str]:
  """(true class, predicted class, its probability)."""
  said = int(examples.probs[index].argmax())
  return (
    names[int(examples.labels[index])],
    names[said],
    wording.percent(examples.probs[index, said], digits=0),
  )
