"""Compiled search for the clustering with the highest modularity Q: the Monte Carlo chain and its refinement.

Everything here works on plain numpy arrays. B (n, n) is the modularity matrix of the live units with its diagonal set
to zero, scaled so that Q = q0 + Σ_c Σ_{ij∈c} B_ij, where q0, the trace taken away, is the same for every clustering.
Labels are integers 0 … k − 1. Every search keeps the ties S[c, u] = Σ_{v∈c} B_vu of each unit to each cluster, so that
moving u from a to c changes Q by 2(S[c, u] − S[a, u]): O(1) to score, O(n) to carry out.
The random numbers are the kernels' own (splitmix64), so that a seed gives the same result on every machine.
"""

import numba
import numpy as np

ROUNDING = 1e-13  # differences of Q (of order 1) below this are rounding: never an improvement, always a tie
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
ENTROPY_ERROR = 1e-3  # nats; the rule asks for 0.01
SCATTERED = 32  # kicks that scatter, per n
LENIENCE = 4e-3  # mean loss of Q accepted after the first kick, relative to the best; falls to 0 with the last
PATIENCE = 8  # moves without improvement that end a Kernighan–Lin pass


def jit(function):
    """`numba.njit`, with the machine code kept on disk wherever numba finds a directory that it may write to.

    A compiled function must call only compiled functions of its own file: numba does not notice changes in others.
    """
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available": neither beside the source nor in the user's cache directory
        return numba.njit(error_model="numpy")(function)


def random_state(*seed: int) -> np.ndarray:
    """State (uint64, length 1) of the kernels' generator; different tuples of integers give unrelated streams."""
    return np.random.SeedSequence(seed).generate_state(1, np.uint64)


@jit
def random_unit(state):
    """Next uniform number in [0, 1): splitmix64 (Steele, Lea & Flood 2014), its upper 53 bits."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@jit
def random_below(state, n):
    """Next uniform integer in 0 … n − 1."""
    return np.int64(random_unit(state) * n)


@jit
def shuffle(state, order, count):
    """Bring `count` random elements to the front of `order`, in random order (Fisher–Yates)."""
    for i in range(min(count, len(order) - 1)):
        j = i + random_below(state, len(order) - i)
        order[i], order[j] = order[j], order[i]


# ---- a clustering in progress: labels, sizes and ties S -------------------------------------------------------------


@jit
def tally(B, labels, S, sizes):
    """Fill S and sizes from the labels; return the number of clusters k (labels must be 0 … k − 1)."""
    n, k = len(labels), labels.max() + 1
    S[:k, :n] = 0.0
    sizes[:k] = 0
    for v in range(n):
        sizes[labels[v]] += 1
        row = S[labels[v]]
        for u in range(n):
            row[u] += B[v, u]
    return k


@jit
def total(S, labels):
    """Q − q0 = Σ_u S[label of u, u]."""
    q = 0.0
    for u in range(len(labels)):
        q += S[labels[u], u]
    return q


@jit
def shift(B, labels, S, sizes, k, u, c):
    """Move unit u to cluster c (c = k opens a new one), without removing a cluster that this empties; return k."""
    n, a = len(labels), labels[u]
    if c == k:
        S[k, :n] = 0.0
        sizes[k] = 0
        k += 1
    source, target = S[a], S[c]
    for v in range(n):
        b = B[u, v]
        source[v] -= b
        target[v] += b
    sizes[a] -= 1
    sizes[c] += 1
    labels[u] = c
    return k


@jit
def drop_if_empty(labels, S, sizes, k, a):
    """If cluster a is empty, give its number to the last cluster; return the number of clusters."""
    if sizes[a] > 0:
        return k
    n, last = len(labels), k - 1
    if a != last:
        S[a, :n] = S[last, :n]
        sizes[a] = sizes[last]
        for v in range(n):
            if labels[v] == last:
                labels[v] = a
    return last


@jit
def move(B, labels, S, sizes, k, u, c):
    """Move unit u to cluster c (c = k opens a new one); return the number of clusters."""
    a = labels[u]
    k = shift(B, labels, S, sizes, k, u, c)
    return drop_if_empty(labels, S, sizes, k, a)


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
    Returns: T, entropy, x, evaluations of the entropy.
    """
    unit = np.inf
    for i in range(count):
        if gaps[i] > ROUNDING:
            unit = min(unit, gaps[i])
        else:
            gaps[i] = 0.0
    if unit == np.inf:  # all tied: any temperature gives the same, uniform, choice
        entropy, _ = choice_entropy(gaps, 1.0, count, 0.0, weights)
        return MIN_TEMPERATURE, entropy, x, 1
    low, high = unit / MAX_TEMPERATURE, unit / MIN_TEMPERATURE
    low_tried, high_tried = False, False
    x = min(max(x, low), high)
    evaluations = 0
    while evaluations < 200:
        evaluations += 1
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
    return unit / x, entropy, x, evaluations


@jit
def run_chain(B, q0, labels, S, sizes, max_clusters, target, state, scores, temperatures, entropies):
    """The Monte Carlo chain of `modularity.monte_carlo_modularity`; returns the labels of the best clustering seen.

    S must have room for one cluster more than can arise; scores (Q after the step), temperatures and entropies receive
    one value a step.
    """
    n, k = len(labels), tally(B, labels, S, sizes)
    q = q0 + total(S, labels)
    best, best_labels = q, labels.copy()
    gains, gaps, weights = np.empty(n + 1), np.empty(n + 1), np.empty(n + 1)
    x = 3.0
    for t in range(len(scores)):
        u = random_below(state, n)
        a = labels[u]
        count = k + 1 if sizes[a] > 1 and k < max_clusters else k
        stay = S[a, u]
        top = -np.inf
        for c in range(count):
            gains[c] = 2.0 * ((S[c, u] if c < k else 0.0) - stay)
            top = max(top, gains[c])
        for c in range(count):
            gaps[c] = top - gains[c]
        temperatures[t], entropies[t], x, _ = solve_temperature(gaps, count, target, x, weights)
        left = random_unit(state) * weights[:count].sum()
        c = 0
        while c < count - 1 and left >= weights[c]:
            left -= weights[c]
            c += 1
        if c != a:
            q += gains[c]
            k = move(B, labels, S, sizes, k, u, c)
            if q > best + ROUNDING:
                best = q
                best_labels[:] = labels
        scores[t] = q
    return best_labels


# ---- refinement: iterated local search ------------------------------------------------------------------------------


@jit
def best_free_move(labels, S, sizes, k, locked, top):
    """The unlocked unit and other home with the largest gain, and half that gain.

    top (n,) is scratch: the ties to the best other cluster. The inner loops compile to vector instructions.
    """
    n = len(labels)
    top[:] = -np.inf
    for c in range(k):
        row = S[c]
        for u in range(n):
            s = row[u] if labels[u] != c else -np.inf
            top[u] = s if s > top[u] else top[u]
    best, unit = -np.inf, -1
    for u in range(n):
        if locked[u]:
            continue
        if top[u] < 0.0 and sizes[labels[u]] > 1:
            top[u] = 0.0  # a new cluster
        half = top[u] - S[labels[u], u]
        if half > best:
            best, unit = half, u
    if unit >= 0:
        for c in range(k):
            if S[c, unit] == top[unit] and c != labels[unit]:
                return unit, c, best
    return unit, k, best


@jit
def sweep(B, labels, S, sizes, k, order):
    """Move each unit in turn to its best home; return the number of clusters and of moves."""
    moves = 0
    for u in order:
        a = labels[u]
        best, home = S[a, u] + ROUNDING, a
        for c in range(k):
            if S[c, u] > best and c != a:
                best, home = S[c, u], c
        if best < 0.0 and sizes[a] > 1:
            home = k
        if home != a:
            k = move(B, labels, S, sizes, k, u, home)
            moves += 1
    return k, moves


@jit
def climb(B, labels, S, sizes, k, locked, top):
    """Make the best single move again and again, until none raises Q; return the number of clusters."""
    locked[:] = False
    while True:
        u, c, half = best_free_move(labels, S, sizes, k, locked, top)
        if half <= ROUNDING:
            return k
        k = move(B, labels, S, sizes, k, u, c)


@jit
def kernighan_lin(B, labels, S, sizes, k, locked, top, units, homes):
    """One Kernighan–Lin pass: forced best moves, each unit once, rolled back to the best prefix; return k and its gain.

    Clusters emptied on the way keep their number until the end, so that the roll-back can refill them.
    """
    n = len(labels)
    locked[:] = False
    gain, best, length, kept = 0.0, 0.0, 0, 0
    while length < n and length - kept < PATIENCE and k < len(S) - 1:
        u, c, half = best_free_move(labels, S, sizes, k, locked, top)
        units[length], homes[length] = u, labels[u]
        locked[u] = True
        k = shift(B, labels, S, sizes, k, u, c)
        gain += 2.0 * half
        length += 1
        if gain > best + ROUNDING:
            best, kept = gain, length
    for i in range(length - 1, kept - 1, -1):
        k = shift(B, labels, S, sizes, k, units[i], homes[i])
    for c in range(k - 1, -1, -1):
        k = drop_if_empty(labels, S, sizes, k, c)
    return k, best


@jit
def merge(labels, S, sizes, k):
    """Join the two clusters whose union raises Q most, again and again, until no union does; return k."""
    n = len(labels)
    links = np.zeros((k, k))  # Σ_{i∈a, j∈c} B_ij: joining a and c changes Q by twice that
    for c in range(k):
        for u in range(n):
            links[labels[u], c] += S[c, u]
    while k > 1:
        most, a, b = ROUNDING, -1, -1
        for i in range(k):
            for j in range(i):
                if links[i, j] > most:
                    most, a, b = links[i, j], i, j
        if a < 0:
            break
        S[b, :n] += S[a, :n]
        links[b, :k] += links[a, :k]
        links[:k, b] += links[:k, a]
        sizes[b] += sizes[a]
        sizes[a] = 0
        for u in range(n):
            if labels[u] == a:
                labels[u] = b
        k = drop_if_empty(labels, S, sizes, k, a)
        links[a, :k] = links[k, :k]
        links[:k, a] = links[:k, k]
        links[a, a] = links[k, k]
    return k


@jit
def polish(B, labels, S, sizes, k, order, locked, top, units, homes, state):
    """Single moves in random order while many raise Q; unions; best moves and Kernighan–Lin passes until none does."""
    shuffle(state, order, len(order))
    moves = len(order)
    while moves > len(order) // 16:
        k, moves = sweep(B, labels, S, sizes, k, order)
    k = merge(labels, S, sizes, k)
    gain = np.inf
    while gain > ROUNDING:
        k = climb(B, labels, S, sizes, k, locked, top)
        k, gain = kernighan_lin(B, labels, S, sizes, k, locked, top, units, homes)
    return k


@jit
def scatter(B, labels, S, sizes, k, pool, state):
    """Kick: reassign a random n/4 … n units at random to 2 … 2k + 1 clusters; return k.

    The number of clusters varies: kicks among the k that there are seldom lead to an optimum with more.
    """
    n = len(labels)
    count = max(1, n // 4) + random_below(state, n - max(1, n // 4) + 1)
    spread = 2 + random_below(state, 2 * k)
    shuffle(state, pool, count)
    for i in range(count):
        k = move(B, labels, S, sizes, k, pool[i], min(k, random_below(state, spread)))
    return k


@jit
def next_best_home(labels, S, k, u):
    """The cluster that unit u is most tied to after its own; its own where there is no other."""
    most, home = -np.inf, labels[u]
    for c in range(k):
        if c != labels[u] and S[c, u] > most:
            most, home = S[c, u], c
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
def shatter(B, labels, S, sizes, k, members, state):
    """Kick: give each unit of two or three clusters, with probability 0.3 … 1, a cluster of its own; return k.

    They are a random unit's, the one that this unit is most tied to next and, half of the time, a random one.
    """
    u = random_below(state, len(labels))
    third = random_below(state, k) if random_unit(state) < 0.5 else labels[u]
    count = gather(labels, labels[u], next_best_home(labels, S, k, u), third, members)
    share = 0.3 + 0.7 * random_unit(state)
    for i in range(count):
        if sizes[labels[members[i]]] > 1 and random_unit(state) < share:
            k = move(B, labels, S, sizes, k, members[i], k)
    return k


@jit
def dissolve(B, labels, S, sizes, k, members, state):
    """Kick: deal the units of two clusters at random to 1 … 3 new ones; return k.

    One cluster is a random unit's, the other a random one or, as often, the one that this unit is most tied to next.
    """
    u = random_below(state, len(labels))
    b = next_best_home(labels, S, k, u) if random_unit(state) < 0.5 else random_below(state, k)
    count = gather(labels, labels[u], b, b, members)
    parts = 1 + random_below(state, 3)
    first = np.full(3, -1)  # the unit that opened each part: clusters are renumbered on the way, units are not
    for i in range(count):
        v, part = members[i], random_below(state, parts)
        if first[part] >= 0:
            k = move(B, labels, S, sizes, k, v, labels[first[part]])
            continue
        first[part] = v
        if sizes[labels[v]] > 1:
            k = move(B, labels, S, sizes, k, v, k)
    return k


@jit
def iterated_local_search(B, labels, S, sizes, rounds, state):
    """Refinement of `modularity.refine_modularity`; changes labels in place.

    A round kicks the clustering (scatters it with probability 32/n, else shatters or dissolves part of it), polishes
    it, and keeps the result if Q falls by no more than a random amount, exponential, whose mean falls from LENIENCE of
    the best Q to 0.

    Returns: Q − q0, and the round that last raised it.
    """
    n = len(labels)
    order, pool, locked, top = np.arange(n), np.arange(n), np.zeros(n, np.bool_), np.empty(n)
    units, homes = np.empty(n, np.int64), np.empty(n, np.int64)
    k = tally(B, labels, S, sizes)
    k = polish(B, labels, S, sizes, k, order, locked, top, units, homes, state)
    q, kept_k, kept, kept_sizes, kept_S = total(S, labels), k, labels.copy(), sizes.copy(), np.empty(S.shape)
    kept_S[:k] = S[:k]
    best, best_labels, last = q, labels.copy(), 0
    for r in range(rounds):
        if random_below(state, n) < SCATTERED:
            k = scatter(B, labels, S, sizes, k, pool, state)
        elif random_unit(state) < 0.5:
            k = shatter(B, labels, S, sizes, k, units, state)
        else:
            k = dissolve(B, labels, S, sizes, k, units, state)
        k = polish(B, labels, S, sizes, k, order, locked, top, units, homes, state)
        new, lenience = total(S, labels), LENIENCE * (1.0 - r / rounds)
        if new > q - ROUNDING + lenience * abs(best) * np.log(1.0 - random_unit(state)):
            q, kept_k = new, k
            kept[:] = labels
            kept_sizes[:k] = sizes[:k]
            kept_S[:k] = S[:k]
            if q > best + ROUNDING:
                best, last = q, r + 1
                best_labels[:] = labels
        else:
            k = kept_k
            labels[:] = kept
            sizes[:k] = kept_sizes[:k]
            S[:k] = kept_S[:k]
    labels[:] = best_labels
    return best, last
