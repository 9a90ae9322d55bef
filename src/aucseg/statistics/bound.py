"""The generalization bound of AUCSeg (Han et al., NeurIPS 2024)."""

import math


def bound_terms(
    *,
    num_images: int,
    pixels_per_image: int,
    num_classes: int,
    tau: float,
    delta: float,
    mu: float,
    constants: tuple[float, float, float],
) -> dict[str, float]:
    """Returns the terms of the bound on the difference of empirical and expected loss.

    `8/N + (eta_inner + eta_inter)/sqrt(N) sqrt(A log(2 B mu tau N k + C))
    + 3 (sqrt(1/(2N)) + K sqrt(1 - 1/N)) sqrt(log(4 K (K-1) / delta))`
    with `eta_inner = 48 mu tau ln(N)/N` and `eta_inter = 2 sqrt(2) tau`. As a number the bound says nothing: its
    last term alone is far above 1, and the paper leaves A, B and C open. Its use is how it grows with N, K and tau.

    Args:
        num_images: N.
        pixels_per_image: k, at least 1.
        num_classes: K.
        tau: How unevenly the classes are spread over the images.
        delta: The bound holds with probability `1 - delta`.
        mu: Lipschitz constant of the risk of a sample.
        constants: A, B, C.

    Returns:
        `sample` (8/N), `inner` and `inter` (dependence inside one image, between images), `confidence` (the
        last term), `total`, and `tau`.

    Raises:
        ValueError: `delta` outside (0, 1), or `pixels_per_image`, `mu` or a constant that is not positive.

    Example:
        >>> size = {"pixels_per_image": 100, "num_classes": 19, "tau": 4.0}
        >>> terms = bound_terms(num_images=3000, **size, delta=0.01, mu=1.0, constants=(1.0, 1.0, 1.0))
        >>> round(terms["confidence"], 1)
        196.1
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability between 0 and 1, got {delta}")
    if mu <= 0 or min(constants) <= 0:
        raise ValueError(f"mu and the constants must be positive, not mu={mu}, constants={constants}")
    if pixels_per_image < 1:
        raise ValueError(f"pixels_per_image must be at least 1, got {pixels_per_image}")
    a, b, c = constants
    n = num_images
    scale = math.sqrt(max(a * math.log(2 * b * mu * tau * n * pixels_per_image + c), 0) / n)
    pairs = 4 * num_classes * max(num_classes - 1, 1)
    terms = {
        "sample": 8 / n,
        "inner": 48 * mu * tau * math.log(n) / n * scale,
        "inter": 2 * math.sqrt(2) * tau * scale,
        "confidence": 3
        * (math.sqrt(1 / (2 * n)) + num_classes * math.sqrt(1 - 1 / n))
        * math.sqrt(math.log(pairs / delta)),
    }
    return terms | {"total": sum(terms.values()), "tau": tau}
