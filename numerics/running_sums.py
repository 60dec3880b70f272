"""Running sums over the data of (d, d) matrices, exact or estimated with an error, and what becomes of their means."""

import torch

CHUNK = 16  # images whose random estimates are compared as one, for the standard error
MAX_TERMS = 2**14  # of a float32 sum: over a million terms the rounding errors of a matrix product reach 1e-4


def normalized(matrix):
    """matrix_ij / sqrt(matrix_ii matrix_jj), each diagonal entry clamped below at 1e-12 before the root.

    >>> import torch
    >>> normalized(torch.tensor([[4.0, 3.0], [3.0, 9.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    root = matrix.diagonal().clamp(min=1e-12).sqrt()
    return matrix / root[:, None] / root


def at_least_float32(tensor):
    """The tensor itself; float16 and bfloat16, whose sums overflow or stop to grow, as float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def gram(a, b=None):
    """Σ over all leading dimensions of a_i b_j, b = a by default: (…, d) → (d, d), float64."""
    a = at_least_float32(a).flatten(0, -2)
    b = a if b is None else at_least_float32(b).flatten(0, -2)
    return sum((p.T @ q).double() for p, q in zip(a.split(MAX_TERMS), b.split(MAX_TERMS), strict=True))


def diagonal_blocks(matrix, widths):
    """Copies of the blocks of the given widths along the diagonal of a square matrix."""
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return [
        matrix[start : start + width, start : start + width].clone()
        for start, width in zip(starts, widths, strict=True)
    ]


class Covariance:
    """Population covariance over examples, per location, averaged over locations.

    Activations are shifted by the first batch's means before they are squared, and summed over batches in float64: a
    mean far above the deviation costs no digits.
    """

    sampled = False

    def __init__(self):
        self.shift, self.first, self.second = None, 0, 0

    def add(self, rows):
        """Takes in a batch of activations (B, S, d)."""
        rows = at_least_float32(rows)
        if self.shift is None:
            self.shift = rows.mean(0)
        centred = rows - self.shift
        self.first = self.first + centred.sum(0).double()  # (S, d)
        self.second = self.second + gram(centred)  # (d, d)

    def mean(self, n):
        """The covariance of n examples."""
        return (self.second - gram(self.first) / n) / (n * len(self.first))


def _chunk_grams(rows, others):
    """Gram matrices of a few examples each."""
    if others is None:
        yield from map(gram, rows.split(CHUNK))
        return
    for a, b in zip(rows.split(CHUNK), others.split(CHUNK), strict=True):
        product = gram(a, b)
        yield (product + product.T) / 2


class GramSum:
    """Sum over the data of matrices that are known exactly, or of unbiased random estimates, with their error.

    Estimates come in pairs (G, G′), independent given the images. Of P pairs an image, each adds (G + G′) / 2P to the
    sum. With D = G − G′, E[D] = 0 and Var(D) = Var(G + G′), so that Σ D² / (2P)², over pairs and chunks of images,
    estimates the variance of the sum, with one degree of freedom for each chunk and pair.
    """

    def __init__(self):
        self.total, self.sampled = 0, False
        self.dd, self.d_diagonal, self.diagonals = 0, 0, 0  # Σ D_ij², Σ D_ij D_ii, Σ D_ii D_jj, each over (2P)²

    def add(self, matrix):
        """Takes in the exact sum over a batch, (d, d)."""
        self.total = self.total + matrix.double()

    def add_pair(self, rows, rows_again, pairs, others=None):
        """Takes in one of `pairs` pairs for a batch: (B, S, d) each, whose Gram matrices estimate the same.

        With `others`, two more of the same shape, the estimates are the symmetric parts of Σ rows_i others_j instead.
        """
        self.sampled = True
        others, others_again = (None, None) if others is None else others
        for a, b in zip(_chunk_grams(rows, others), _chunk_grams(rows_again, others_again), strict=True):
            self._add_estimates(a / (2 * pairs), b / (2 * pairs))

    def _add_estimates(self, a, b):
        difference = a - b
        diagonal = difference.diagonal()
        self.total = self.total + a + b
        self.dd = self.dd + difference**2
        self.d_diagonal = self.d_diagonal + difference * diagonal[:, None]
        self.diagonals = self.diagonals + diagonal[:, None] * diagonal

    def mean(self, n):
        """The sum over n examples, divided by n."""
        return self.total / n

    def stderr(self, n, of_normalized=False):
        """Standard error of each entry of T = mean(n), or of normalized(T) to first order; zeros where all is exact.

        With R_ij = T_ij/√(T_ii T_jj): δR_ij = δT_ij/√(T_ii T_jj) − ½ R_ij (δT_ii/T_ii + δT_jj/T_jj).
        """
        mean = self.mean(n)
        if not self.sampled:
            return torch.zeros_like(mean)
        variance = self.dd
        if of_normalized:
            t = mean.diagonal().clamp(min=1e-12)
            r, tt = normalized(mean), t[:, None] * t
            own, cross = self.diagonals.diagonal() / t**2, self.d_diagonal / t[:, None]
            variance = (
                self.dd / tt
                - r / tt.sqrt() * (cross + cross.T)
                + r**2 / 4 * (own[:, None] + own + 2 * self.diagonals / tt)
            )
        return variance.clamp(min=0).sqrt() / n
