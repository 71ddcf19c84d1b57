"""The pairwise margin loss in its general form, against which every named loss is tested."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_margin(
    logits: Tensor, labels: Tensor, *, delta: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """The loss of each example [B] for margins delta [C, C], with labels in rows, and weights [C].

    delta is dense or sparse COO, and its diagonal is not read. A sparse one is gathered by the rows
    of the batch, so 8,142 classes need B x C numbers rather than C x C. With m = logsumexp over y'
    of Delta + f_{y'} - f_y, the loss is softplus(m), which is exact also where it is tiny.
    """
    margins = delta.index_select(0, labels)
    rows = margins.to_dense() if margins.is_sparse else margins
    wide = logits if logits.dtype == torch.float64 else logits.float()
    own = wide.gather(1, labels[:, None])[:, 0]
    rivals = (wide + rows).scatter(1, labels[:, None], float("-inf"))
    losses = F.softplus(rivals.logsumexp(dim=1) - own)
    return losses if alpha is None else alpha[labels] * losses
