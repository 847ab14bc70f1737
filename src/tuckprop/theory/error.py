"""What the kept activation loses, and what the weight gradient loses by it, against the retained variance.

Symbols: A is the activation, A~ what is kept of it, S HOSVD's core, eps the share of energy that every mode keeps.
The paper plots the signal-to-noise ratio against eps (Nguyen et al., NeurIPS 2024, Fig. 3c); all forms here are derived
here: from orthonormal factors, as in De Lathauwer et al. 2000.
"""

from math import inf, sqrt

from tuckprop.errors import ConfigError


def _lost(epsilon: float, modes: int) -> float:
    """Return `modes (1 - eps)`, at most 1: a projection never loses more than there is."""
    if not 0 < epsilon <= 1:
        raise ConfigError(f"epsilon: expected a share of variance in (0, 1], got {epsilon!r}")
    if modes < 1:
        raise ConfigError(f"modes: expected at least 1, got {modes}")
    return min(1.0, modes * (1 - epsilon))


def squared_error(energy: float, core_energy: float) -> float:
    """Return `|A - A~|^2 = |A|^2 - |S|^2`: exact, A~ being a projection of A and S its coordinates.

    Eq. 28 of docs/predictions.md.

    Args:
        energy: |A|^2.
        core_energy: |S|^2.
    """
    return max(0.0, energy - core_energy)


def snr(energy: float, error: float) -> float:
    """Return the signal-to-noise ratio `|A|^2 / |A - A~|^2`; infinite where nothing is lost.

    Eq. 29 of docs/predictions.md.
    """
    return inf if error == 0 else energy / error


def hosvd_error_bound(epsilon: float, modes: int = 4) -> float:
    """Return the most that HOSVD loses: `|A - A~|^2 / |A|^2 <= modes (1 - eps)`, and never more than 1.

    Eq. 30 of docs/predictions.md.

    Args:
        epsilon: Share of the energy that every mode keeps, in (0, 1].
        modes: How many modes have a factor.

    Raises:
        ConfigError: `epsilon` or `modes` is out of range.
    """
    return _lost(epsilon, modes)


def hosvd_snr_bound(epsilon: float, modes: int = 4) -> float:
    """Return the least signal-to-noise ratio of HOSVD, `1 / (4 (1 - eps))` for four modes, and never less than 1.

    Eq. 31 of docs/predictions.md.

    Raises:
        ConfigError: `epsilon` or `modes` is out of range.
    """
    return snr(1.0, hosvd_error_bound(epsilon, modes))


def svd_snr_bound(epsilon: float) -> float:
    """Return the least signal-to-noise ratio of SVD, `1 / (1 - eps)`.

    Eq. 32 of docs/predictions.md.

    Raises:
        ConfigError: `epsilon` is out of range.
    """
    return hosvd_snr_bound(epsilon, modes=1)


def hosvd_snr_guess(epsilon: float, modes: int = 4) -> float:
    """Return `1 / (1 - eps^4)`: the ratio if the four modes lost energy independently of each other. No bound.

    Eq. 33 of docs/predictions.md.

    Raises:
        ConfigError: `epsilon` or `modes` is out of range.
    """
    _lost(epsilon, modes)
    return snr(1.0, 1 - epsilon**modes)


def weight_gradient_error_bound(epsilon: float, operator_norm: float, norm: float, modes: int = 4) -> float:
    """Return the most that the weight gradient errs: `|dW - dW~| <= 2 sqrt(1 - eps) |T_G| |A|` for four modes.

    The weight gradient is linear in the activation, so its error is the map T_G, from A to dW at the output gradient G,
    applied to A - A~. All norms but |T_G| are Frobenius norms.

    Eq. 34 of docs/predictions.md.

    Args:
        epsilon: Share of the energy that every mode keeps, in (0, 1].
        operator_norm: |T_G|, the largest singular value of T_G.
        norm: |A|.
        modes: How many modes have a factor; 1 for SVD.

    Raises:
        ConfigError: `epsilon` or `modes` is out of range.
    """
    return sqrt(_lost(epsilon, modes)) * operator_norm * norm
