"""Compiled search for the clustering with the highest modularity Q: the Monte Carlo chain and its refinement.

Everything here works on plain numpy arrays. B (n, n) is the modularity matrix of the live units with its diagonal set
to zero, scaled so that Q = q0 + Σ_c Σ_{ij∈c} B_ij, where q0, the trace taken away, is the same for every clustering.
Every search keeps the links S[c, u] = Σ_{v∈c} B_vu of each unit to each cluster, so that moving u from a to c changes Q
by 2(S[c, u] − S[a, u]): O(1) to score, O(n) to carry out.
"""

from typing import NamedTuple

import numpy as np

from numerics.jit import jit

ROUNDING = 1e-13  # differences of Q (of order 1) below this are rounding: never an improvement, always a tie
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
ENTROPY_ERROR = 1e-3  # nats; the rule asks for 0.01
SCATTERED = 32  # kicks that scatter, per n
LENIENCE = 4e-3  # mean loss of Q accepted after the first kick, relative to the best Q − q0; falls to 0 with the last
PATIENCE = 8  # moves without improvement that end a Kernighan–Lin pass


class Partition(NamedTuple):
    """A clustering in progress; all but B change in place."""

    B: np.ndarray  # (n, n)
    labels: np.ndarray  # (n,) int64, 0 … k − 1
    S: np.ndarray  # links: (at least k + 1, at least n); rows padded, so that columns spread over the cache
    sizes: np.ndarray  # (at least k + 1,) int64
    count: np.ndarray  # (1,) int64: k, the number of clusters


class Scratch(NamedTuple):
    """Space for a polish, and a permutation of the units."""

    order: np.ndarray  # (n,) int64
    locked: np.ndarray  # (n,) bool: units that a Kernighan–Lin pass has moved
    top: np.ndarray  # (n,): links to the best other cluster
    units: np.ndarray  # (n,) int64: the moves of a pass
    homes: np.ndarray  # (n,) int64: where they came from


def partition(B: np.ndarray, labels: np.ndarray) -> Partition:
    """The clustering that labels (n,), 0 … k − 1 without a gap, give, with room for n clusters and one new."""
    n = len(B)
    p = Partition(B, labels.copy(), np.zeros((n + 2, n + 8)), np.zeros(n + 2, np.int64), np.zeros(1, np.int64))
    tally(p)
    return p


def scratch(n: int) -> Scratch:
    """Space for n units."""
    empty = np.empty(n, np.int64)
    return Scratch(np.arange(n), np.zeros(n, np.bool_), np.empty(n), empty, empty.copy())


@jit
def random_below(rng, n):
    """Next uniform integer in 0 … n − 1."""
    return np.int64(rng.random() * n)


@jit
def shuffle(rng, order, count):
    """Bring `count` random elements to the front of `order`, in random order (Fisher–Yates)."""
    for i in range(min(count, len(order) - 1)):
        j = i + random_below(rng, len(order) - i)
        order[i], order[j] = order[j], order[i]


# ---- changes of a clustering ----------------------------------------------------------------------------------------


@jit
def tally(p):
    """Fill in links, sizes and the number of clusters from the labels, which must be 0 … k − 1."""
    n, k = len(p.labels), p.labels.max() + 1
    p.S[:k, :n] = 0.0
    p.sizes[:k] = 0
    for v in range(n):
        p.sizes[p.labels[v]] += 1
        row = p.S[p.labels[v]]
        for u in range(n):
            row[u] += p.B[v, u]
    p.count[0] = k


@jit
def total(p):
    """Q − q0 = Σ_u S[label of u, u]."""
    q = 0.0
    for u in range(len(p.labels)):
        q += p.S[p.labels[u], u]
    return q


@jit
def shift(p, u, c):
    """Move unit u to cluster c (c = k opens a new one), without removing a cluster that this empties."""
    n, a = len(p.labels), p.labels[u]
    if c == p.count[0]:
        p.S[c, :n] = 0.0
        p.sizes[c] = 0
        p.count[0] += 1
    source, target = p.S[a], p.S[c]
    for v in range(n):
        b = p.B[u, v]
        source[v] -= b
        target[v] += b
    p.sizes[a] -= 1
    p.sizes[c] += 1
    p.labels[u] = c


@jit
def drop_if_empty(p, a):
    """If cluster a is empty, remove it: the last cluster takes its number."""
    if p.sizes[a] > 0:
        return
    n, last = len(p.labels), p.count[0] - 1
    if a != last:
        p.S[a, :n] = p.S[last, :n]
        p.sizes[a] = p.sizes[last]
        for v in range(n):
            if p.labels[v] == last:
                p.labels[v] = a
    p.count[0] = last


@jit
def move(p, u, c):
    """Move unit u to cluster c (c = k opens a new one)."""
    a = p.labels[u]
    shift(p, u, c)
    drop_if_empty(p, a)


@jit
def assign(target, source):
    """Make one clustering of the same B equal to another."""
    k = source.count[0]
    target.labels[:] = source.labels
    target.S[:k] = source.S[:k]
    target.sizes[:k] = source.sizes[:k]
    target.count[0] = k


# ---- the Monte Carlo chain ------------------------------------------------------------------------------------------


@jit
def choice_entropy(gaps, unit, count, x, weights):
    """Weights exp(−x·gap/unit), their entropy in nats and its derivative by x, −x·Var(gap/unit)."""
    z, first, second = 0.0, 0.0, 0.0
    for i in range(count):
        r = gaps[i] / unit
        w = np.exp(-x * r)
        weights[i] = w
        z += w
        if w > 0.0:
            first += w * r
            second += w * r * r
    mean = first / z
    return np.log(z) + x * mean, -x * (second / z - mean * mean)


@jit
def solve_temperature(gaps, count, target, x, weights):
    """Temperature at which a choice with probability ∝ exp(−gap/T) has the target entropy; fills the weights.

    Newton's method on the log of the entropy as a function of x = (smallest positive gap)/T, which is nearly linear,
    kept inside a bracket and started at x. Where the target is out of reach, T is the nearest in [1e-6, 1e6].

    Args: gaps: shortfalls below the best candidate, ≥ 0; those below rounding count as ties.
    Returns: T, entropy, x.
    """
    unit = np.inf
    for i in range(count):
        if gaps[i] > ROUNDING:
            unit = min(unit, gaps[i])
        else:
            gaps[i] = 0.0
    if unit == np.inf:  # all tied: any temperature gives the same, uniform, choice
        entropy, _ = choice_entropy(gaps, 1.0, count, 0.0, weights)
        return MIN_TEMPERATURE, entropy, x
    low, high = unit / MAX_TEMPERATURE, unit / MIN_TEMPERATURE
    low_tried, high_tried = False, False
    x = min(max(x, low), high)
    for _ in range(200):
        entropy, slope = choice_entropy(gaps, unit, count, x, weights)
        if abs(entropy - target) < ENTROPY_ERROR:
            break
        if entropy > target:
            if x == high:
                break
            low, low_tried = x, True
        else:
            if x == low:
                break
            high, high_tried = x, True
        guess = np.inf
        if entropy > 0.0 and slope < 0.0:
            guess = x - entropy * np.log(entropy / target) / slope
        if guess >= high:
            x = np.sqrt(low * high) if high_tried else high
        elif guess <= low:
            x = np.sqrt(low * high) if low_tried else low
        else:
            x = guess
        if not (low < x < high) and high - low < 1e-14 * high:
            break
    return unit / x, entropy, x


@jit
def run_chain(p, q0, max_clusters, steps, target, rng):
    """The Monte Carlo chain of `modularity.monte_carlo_modularity`.

    Returns: the labels of the best clustering seen; (3, steps): Q after each step, T and the entropy of its choice.
    """
    n, q = len(p.labels), q0 + total(p)
    best, best_labels = q, p.labels.copy()
    histories = np.empty((3, steps))
    gains, gaps, weights = np.empty(n + 1), np.empty(n + 1), np.empty(n + 1)
    x = 3.0
    for t in range(steps):
        u = random_below(rng, n)
        a, k = p.labels[u], p.count[0]
        count = k + 1 if p.sizes[a] > 1 and k < max_clusters else k
        stay = p.S[a, u]
        top = -np.inf
        for c in range(count):
            gains[c] = 2.0 * ((p.S[c, u] if c < k else 0.0) - stay)
            top = max(top, gains[c])
        for c in range(count):
            gaps[c] = top - gains[c]
        T, entropy, x = solve_temperature(gaps, count, target, x, weights)
        left = rng.random() * weights[:count].sum()
        c = 0
        while c < count - 1 and left >= weights[c]:
            left -= weights[c]
            c += 1
        if c != a:
            q += gains[c]
            move(p, u, c)
            if q > best + ROUNDING:
                best = q
                best_labels[:] = p.labels
        histories[0, t], histories[1, t], histories[2, t] = q, T, entropy
    return best_labels, histories


# ---- refinement: iterated local search ------------------------------------------------------------------------------


@jit
def best_free_move(p, locked, top):
    """The unlocked unit and other home with the largest gain, and half that gain.

    top (n,) is scratch: the links to the best other cluster. The inner loops compile to vector instructions.
    """
    n, k, labels = len(p.labels), p.count[0], p.labels
    top[:] = -np.inf
    for c in range(k):
        row = p.S[c]
        for u in range(n):
            s = row[u] if labels[u] != c else -np.inf
            top[u] = s if s > top[u] else top[u]
    best, unit = -np.inf, -1
    for u in range(n):
        if locked[u]:
            continue
        if top[u] < 0.0 and p.sizes[labels[u]] > 1:
            top[u] = 0.0  # a new cluster
        half = top[u] - p.S[labels[u], u]
        if half > best:
            best, unit = half, u
    if unit >= 0:
        for c in range(k):
            if p.S[c, unit] == top[unit] and c != labels[unit]:
                return unit, c, best
    return unit, k, best


@jit
def sweep(p, order):
    """Move each unit in turn to its best home; return the number of moves."""
    moves = 0
    for u in order:
        a = p.labels[u]
        best, home = p.S[a, u] + ROUNDING, a
        for c in range(p.count[0]):
            if p.S[c, u] > best and c != a:
                best, home = p.S[c, u], c
        if best < 0.0 and p.sizes[a] > 1:
            home = p.count[0]
        if home != a:
            move(p, u, home)
            moves += 1
    return moves


@jit
def climb(p, locked, top):
    """Make the best single move again and again, until none raises Q."""
    locked[:] = False
    while True:
        u, c, half = best_free_move(p, locked, top)
        if half <= ROUNDING:
            return
        move(p, u, c)


@jit
def kernighan_lin(p, space):
    """One Kernighan–Lin pass: forced best moves, each unit once, rolled back to the best prefix; return its gain.

    Clusters emptied on the way keep their number until the end, so that the roll-back can refill them.
    """
    n, units, homes = len(p.labels), space.units, space.homes
    space.locked[:] = False
    gain, best, length, kept = 0.0, 0.0, 0, 0
    while length < n and length - kept < PATIENCE and p.count[0] < len(p.S) - 1:
        u, c, half = best_free_move(p, space.locked, space.top)
        units[length], homes[length] = u, p.labels[u]
        space.locked[u] = True
        shift(p, u, c)
        gain += 2.0 * half
        length += 1
        if gain > best + ROUNDING:
            best, kept = gain, length
    for i in range(length - 1, kept - 1, -1):
        shift(p, units[i], homes[i])
    for c in range(p.count[0] - 1, -1, -1):
        drop_if_empty(p, c)
    return best


@jit
def merge(p):
    """Join the two clusters whose union raises Q most, again and again, until no union does."""
    n, k = len(p.labels), p.count[0]
    between = np.zeros((k, k))  # Σ_{i∈a, j∈c} B_ij: joining a and c changes Q by twice that
    for c in range(k):
        for u in range(n):
            between[p.labels[u], c] += p.S[c, u]
    while k > 1:
        most, a, b = ROUNDING, -1, -1
        for i in range(k):
            for j in range(i):
                if between[i, j] > most:
                    most, a, b = between[i, j], i, j
        if a < 0:
            return
        p.S[b, :n] += p.S[a, :n]
        between[b, :k] += between[a, :k]
        between[:k, b] += between[:k, a]
        p.sizes[b] += p.sizes[a]
        p.sizes[a] = 0
        for u in range(n):
            if p.labels[u] == a:
                p.labels[u] = b
        drop_if_empty(p, a)
        k -= 1
        between[a, :k] = between[k, :k]
        between[:k, a] = between[:k, k]
        between[a, a] = between[k, k]


@jit
def polish(p, space, rng):
    """Single moves in random order while many raise Q; unions; best moves and Kernighan–Lin passes until none does."""
    n = len(p.labels)
    shuffle(rng, space.order, n)
    moves = n
    while moves > n // 16:
        moves = sweep(p, space.order)
    merge(p)
    gain = np.inf
    while gain > ROUNDING:
        climb(p, space.locked, space.top)
        gain = kernighan_lin(p, space)


@jit
def scatter(p, space, rng):
    """Kick: reassign a random n/4 … n units at random to 2 … 2k + 1 clusters.

    The number of clusters varies: kicks among the k that there are seldom lead to an optimum with more.
    """
    n = len(p.labels)
    count = max(1, n // 4) + random_below(rng, n - max(1, n // 4) + 1)
    spread = 2 + random_below(rng, 2 * p.count[0])
    shuffle(rng, space.order, count)
    for i in range(count):
        move(p, space.order[i], min(p.count[0], random_below(rng, spread)))


@jit
def next_best_home(p, u):
    """The cluster that unit u is most linked to after its own; its own where there is no other."""
    most, home = -np.inf, p.labels[u]
    for c in range(p.count[0]):
        if c != p.labels[u] and p.S[c, u] > most:
            most, home = p.S[c, u], c
    return home


@jit
def gather(labels, a, b, c, members):
    """Fill members with the units of clusters a, b and c; return how many there are."""
    count = 0
    for v in range(len(labels)):
        if labels[v] == a or labels[v] == b or labels[v] == c:
            members[count] = v
            count += 1
    return count


@jit
def shatter(p, space, rng):
    """Kick: give each unit of two or three clusters, with probability 0.3 … 1, a cluster of its own.

    They are a random unit's, the one that this unit is most linked to next and, half of the time, a random one.
    """
    labels, members = p.labels, space.units
    u = random_below(rng, len(labels))
    third = random_below(rng, p.count[0]) if rng.random() < 0.5 else labels[u]
    count = gather(labels, labels[u], next_best_home(p, u), third, members)
    share = 0.3 + 0.7 * rng.random()
    for i in range(count):
        if p.sizes[labels[members[i]]] > 1 and rng.random() < share:
            move(p, members[i], p.count[0])


@jit
def dissolve(p, space, rng):
    """Kick: deal the units of two clusters at random to 1 … 3 new ones.

    One cluster is a random unit's, the other a random one or, as often, the one that this unit is most linked to next.
    """
    labels, members = p.labels, space.units
    u = random_below(rng, len(labels))
    b = next_best_home(p, u) if rng.random() < 0.5 else random_below(rng, p.count[0])
    count = gather(labels, labels[u], b, b, members)
    parts = 1 + random_below(rng, 3)
    first = np.full(3, -1)  # the unit that opened each part: clusters are renumbered on the way, units are not
    for i in range(count):
        v, part = members[i], random_below(rng, parts)
        if first[part] >= 0:
            move(p, v, labels[first[part]])
            continue
        first[part] = v
        if p.sizes[labels[v]] > 1:
            move(p, v, p.count[0])


@jit
def iterated_local_search(p, kept, space, rounds, rng):
    """Refinement of `modularity.refine_modularity`; returns the labels of the best clustering seen.

    A round kicks the clustering (scatters it with probability 32/n, else shatters or dissolves part of it), polishes
    it, and keeps the result if Q falls by no more than a random amount, exponential, whose mean falls from LENIENCE of
    the best Q − q0 to 0.

    Args: p: the start.  kept: another clustering of the same B, for the one that a rejected round goes back to.
    """
    n = len(p.labels)
    polish(p, space, rng)
    q = total(p)
    assign(kept, p)
    best, best_labels = q, p.labels.copy()
    for r in range(rounds):
        if random_below(rng, n) < SCATTERED:
            scatter(p, space, rng)
        elif rng.random() < 0.5:
            shatter(p, space, rng)
        else:
            dissolve(p, space, rng)
        polish(p, space, rng)
        new, lenience = total(p), LENIENCE * (1.0 - r / rounds)
        if new > q - ROUNDING + lenience * abs(best) * np.log(1.0 - rng.random()):
            q = new
            assign(kept, p)
            if q > best + ROUNDING:
                best = q
                best_labels[:] = p.labels
        else:
            assign(p, kept)
    return best_labels
