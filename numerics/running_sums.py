"""Running sums over the data of (d, d) matrices, exact or estimated with an error, and what becomes of their means."""

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


def gram(a, b=None):
    """Σ over all leading dimensions of a_i b_j, b = a by default: (…, d) → (d, d), float64."""
    a, b = a.flatten(0, -2), (a if b is None else b).flatten(0, -2)
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
        if self.shift is None:
            self.shift = rows.mean(0)
        centred = rows - self.shift
        self.first = self.first + centred.sum(0).double()  # (S, d)
        self.second = self.second + gram(centred)  # (d, d)

    def mean(self, n):
        """The covariance of n examples."""
        return (self.second - gram(self.first) / n) / (n * len(self.first))


class GramSum:
    """Sum over the data of matrices that are known exactly."""

    sampled = False

    def __init__(self):
        self.total = 0

    def add(self, matrix):
        """Takes in the sum over a batch, (d, d)."""
        self.total = self.total + matrix.double()

    def mean(self, n):
        """The sum over n examples, divided by n."""
        return self.total / n


class SampledGramSum:
    """Sum over the data of unbiased random estimates, which come in pairs (G, G′) independent given the images.

    The mean is T = Σ (G + G′) / 2Pn, over P pairs and over chunks of the n images. With D = G − G′, E[D] = 0 and
    Var(D) = Var(G + G′), so that Σ D² / (2Pn)² estimates Var(T), with one degree of freedom for each chunk and pair.

    Args: pairs: P, the pairs of estimates that will be taken in for each image.
    """

    sampled = True

    def __init__(self, pairs):
        self.pairs = pairs
        self.total = 0
        self.dd, self.d_diagonal, self.diagonals = 0, 0, 0  # Σ D_ij², Σ D_ij D_ii, Σ D_ii D_jj

    def add(self, rows, rows_again):
        """Takes in one pair for a batch: (B, S, d) each, whose Gram matrices estimate the same."""
        for a, b in zip(rows.split(CHUNK), rows_again.split(CHUNK), strict=True):
            a, b = gram(a), gram(b)
            difference = a - b
            diagonal = difference.diagonal()
            self.total = self.total + a + b
            self.dd = self.dd + difference**2
            self.d_diagonal = self.d_diagonal + difference * diagonal[:, None]
            self.diagonals = self.diagonals + diagonal[:, None] * diagonal

    def mean(self, n):
        """T, the estimate of the mean over n examples."""
        return self.total / (2 * self.pairs * n)

    def stderr(self, n, of_normalized=False):
        """Standard error of each entry of T, or of normalized(T) to first order.

        With R_ij = T_ij/√(T_ii T_jj): δR_ij = δT_ij/√(T_ii T_jj) − ½ R_ij (δT_ii/T_ii + δT_jj/T_jj).
        """
        variance = self.dd
        if of_normalized:
            t = self.mean(n).diagonal().clamp(min=1e-12)
            r, tt = normalized(self.mean(n)), t[:, None] * t
            own, cross = self.diagonals.diagonal() / t**2, self.d_diagonal / t[:, None]
            variance = (
                self.dd / tt
                - r / tt.sqrt() * (cross + cross.T)
                + r**2 / 4 * (own[:, None] + own + 2 * self.diagonals / tt)
            )
        return variance.clamp(min=0).sqrt() / (2 * self.pairs * n)
