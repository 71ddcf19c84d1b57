"""TF-IDF features of texts, the input of the linear network for texts."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn


class TfIdf(nn.Module):
    """Turns token numbers [B, tokens] into TF-IDF features [B, size], rows of unit length.

    A token that occurs n times in a text has the weight (1 + log n) · idf. Token number 0 is
    padding; a text without tokens has only zeros.
    """

    idf: Tensor

    def __init__(self, idf: NDArray[np.float32]) -> None:
        """idf: [size], the inverse document frequencies of the tokens 1 … size."""
        super().__init__()
        self.register_buffer("idf", torch.from_numpy(idf))

    def forward(self, numbers: Tensor) -> Tensor:
        """Return features [B, size] for token numbers [B, tokens]."""
        kind = self.idf.dtype
        zeros = torch.zeros(numbers.shape[0], self.idf.shape[0] + 1, dtype=kind).to(numbers.device)
        ones = torch.ones_like(numbers, dtype=kind)
        counts = zeros.scatter_add(1, numbers.long(), ones)[:, 1:]
        weights = (1 + torch.log(counts.clamp(min=1))) * (counts > 0) * self.idf
        squares = (weights * weights).sum(dim=1, keepdim=True)
        # a text without a token is divided by 1, not by 0
        return weights / torch.sqrt(torch.where(squares > 0, squares, 1.0))

    def sparse(self, numbers: NDArray[np.int32], starts: NDArray[np.int64]) -> csr_matrix:
        """Return the TF-IDF features [n, size] of n texts as a sparse matrix.

        The tokens of text i are numbers[starts[i] : starts[i + 1]], none of them 0.
        """
        columns = numbers.astype(np.int64) - 1
        shape = (len(starts) - 1, len(self.idf))
        found = csr_matrix((np.ones(len(columns)), columns, starts), shape=shape)
        found.sum_duplicates()
        found.data = 1 + np.log(found.data)
        found = found.multiply(self.idf.double().cpu().numpy()).tocsr()
        length = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
        found.data /= np.repeat(length, np.diff(found.indptr))
        return found.astype(np.float32)
