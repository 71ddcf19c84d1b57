"""The losses of the paper and its neighbours, each a plain function of logits and labels.

Each is the pairwise margin loss (Menon et al., ICLR 2021, eq. 11) for some alpha and Delta,

    l(y, f) = alpha_y * log(1 + sum_{y' != y} exp(Delta_{y y'}) * exp(f_{y'} - f_y)),

except two other forms of cross-entropy: focal and equalised-random. logits: [B, C], any float
dtype; labels: [B], int64; class vectors: [C] float tensors on the logits' device. Every function
returns the loss of each example, [B], in float32 or wider. Take the plain mean of it: PyTorch's
`cross_entropy(weight=...)` divides by the sum of the weights instead of B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def separable_margin(
    logits: Tensor,
    labels: Tensor,
    *,
    label_margin: Tensor | None = None,
    rival_margin: Tensor | None = None,
    alpha: Tensor | None = None,
) -> Tensor:
    """The pairwise margin loss for Delta_{y y'} = label_margin_y + rival_margin_{y'}.

    It equals alpha_y * cross-entropy(t, y) with t_{y'} = f_{y'} + rival_margin_{y'} and
    t_y = f_y - label_margin_y. Beyond the cross-entropy, that takes one gather and one scatter of
    [B] and one addition of [C].
    """
    wide = _wide(logits)
    own = _own(wide, labels)
    if label_margin is not None:
        own = own - label_margin[labels]
    shifted = wide if rival_margin is None else wide + rival_margin
    if label_margin is not None or rival_margin is not None:
        shifted = shifted.scatter(1, labels[:, None], own[:, None])
    return _weighted(F.cross_entropy(shifted, labels, reduction="none"), labels, alpha)


def cross_entropy(logits: Tensor, labels: Tensor, *, alpha: Tensor | None = None) -> Tensor:
    """alpha_y * -log softmax(f)_y: `erm` without alpha; `balanced` with alpha = 1 / pi.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([3]))
    tensor([1.3863])
    """
    return separable_margin(logits, labels, alpha=alpha)


def logit_adjusted(
    logits: Tensor, labels: Tensor, *, log_frequencies: Tensor, loss_tau: float = 1.0
) -> Tensor:
    """cross-entropy(f + loss_tau * log pi, y) (Menon et al., eq. 10); predict with the raw f.

    Delta = loss_tau * log(pi_{y'} / pi_y). At loss_tau = 1 it is balanced softmax (Ren et al.,
    NeurIPS 2020). log_frequencies: [C] log pi, or the log of the counts: the constant cancels.

    >>> counts = torch.tensor([3.0, 1.0])
    >>> logit_adjusted(torch.zeros(1, 2), torch.tensor([1]), log_frequencies=counts.log())
    tensor([1.3863])
    """
    return F.cross_entropy(_wide(logits) + loss_tau * log_frequencies, labels, reduction="none")


def equalised_random(
    logits: Tensor,
    labels: Tensor,
    *,
    rare: Tensor,
    gamma: float = 0.9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Softmax equalisation loss (Tan et al., CVPR 2020): spares rare classes negative gradients.

    -log(exp(f_y) / sum_k w_k exp(f_k)), w_k = 1 - b * rare_k * (1 - y_k), b ~ Bernoulli(gamma) for
    each example and class. rare: [C] bool, pi_k < lambda. A weight of 0 is applied as the lowest
    finite logit; the published code multiplies by exp(f), which overflows.
    """
    wide = _wide(logits)
    draws = torch.rand(wide.shape, device=wide.device, generator=generator)
    ignored = rare & (draws < gamma)
    ignored = ignored.scatter(1, labels[:, None], value=False)
    masked = wide.masked_fill(ignored, torch.finfo(wide.dtype).min)
    return F.cross_entropy(masked, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """(1 - p_y)^gamma * -log p_y, p = softmax(f) (Lin et al., ICCV 2017).

    gamma = 0 is cross-entropy. 1 - p_y is computed as -expm1(-loss), exact even where it is tiny.
    """
    loss = F.cross_entropy(_wide(logits), labels, reduction="none")
    return (-torch.expm1(-loss)).pow(gamma) * loss if gamma else loss


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def _wide(logits: Tensor) -> Tensor:
    """Convert to float32 or wider: bf16 has 8 bits, which lose log pi beside a logit of 30."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _weighted(losses: Tensor, labels: Tensor, alpha: Tensor | None) -> Tensor:
    return losses if alpha is None else alpha[labels] * losses
