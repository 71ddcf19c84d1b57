"""Published figures that docs/results.md compares with ours: balanced errors in percent, each with
its source.
"""

PAPER_SOURCE = "Menon et al., ICLR 2021, Table 3; mean of 5 trials"
PAPER_DATA = ("CIFAR-10-LT", "CIFAR-100-LT", "ImageNet-LT", "iNaturalist 2018")
PAPER: dict[str, tuple[float, float, float, float]] = {
    "ERM": (27.16, 61.64, 53.11, 38.66),
    "weight normalisation τ=1": (24.02, 58.89, 52.00, 48.05),
    "weight normalisation τ* (oracle)": (21.50, 58.76, 49.37, 34.10),
    "adaptive margin": (26.65, 60.40, 52.15, 35.42),
    "equalised": (26.02, 57.26, 54.02, 38.37),
    "post-hoc logit adjustment τ=1": (22.60, 58.24, 49.66, 33.98),
    "post-hoc logit adjustment τ* (oracle)": (19.08, 57.90, 49.56, 33.80),
    "logit-adjusted loss τ=1": (22.33, 56.11, 48.89, 33.64),
}

REFERENCE_SOURCE = "an independent implementation with a small CNN of its own and SGD"
REFERENCE: dict[tuple[int, float], dict[str, float]] = {
    (5000, 100.0): {
        "erm": 15.6,
        "post-hoc τ=1": 12.8,
        "logit-adjusted": 12.8,
        "weight-norm τ=1": 14.2,
        "weight-norm τ chosen": 14.2,
        "ldam": 15.5,
        "sampler-balanced": 14.4,
    },
    (5000, 1000.0): {
        "erm": 29.9,
        "post-hoc τ=1": 18.2,
        "logit-adjusted": 17.9,
        "weight-norm τ=1": 23.8,
        "weight-norm τ chosen": 23.8,
        "ldam": 22.4,
        "sampler-balanced": 22.4,
    },
}
"""By (largest class, imbalance ratio), Fashion-MNIST-LT, exponential profile.

It has one figure for weight normalisation, and does not state its τ.
"""
