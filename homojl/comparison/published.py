"""Published test accuracies to set beside ours; each is printed in a paper that is named here."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "monDEQ paper: Winston, Kolter (2020), arXiv 2006.08591; mean and, where given, standard deviation of 3 runs. "
    "How it chose its epoch and how long it trained for each of these numbers is not known to us."
)


@dataclass(frozen=True)
class Published:
    """One number.

    Attributes:
        model: ours that it is to be set beside; None: none of them.
        name: as published.
        parameters: as printed, in thousands.
        accuracy, sd: of the test set, %; no sd where none is given.
    """

    model: str | None
    name: str
    parameters: str
    accuracy: float
    sd: float | None = None


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cifar10": (
        Published("node", "Neural ODE", "172K", 55.3, 0.3),
        Published("anode", "ANODE", "172K", 58.9, 2.8),
        Published("mondeq", "monDEQ, single", "172K", 74.0, 0.1),
        Published("mondeq", "monDEQ, multi", "170K", 72.0, 0.3),
    ),
    "svhn": (
        Published("node", "Neural ODE", "172K", 81.0),
        Published("anode", "ANODE", "172K", 83.5),
        Published("mondeq", "monDEQ, single", "172K", 88.7, 1.1),
        Published("mondeq", "monDEQ, multi", "170K", 92.4, 0.1),
        Published(None, "JFB implicit ResNet", "164K", 94.1),
    ),
    "mnist": (
        Published("node", "Neural ODE", "84K", 96.4),
        Published("anode", "ANODE", "84K", 98.2),
        Published("mondeq", "monDEQ, single", "84K", 99.1, 0.1),
        Published("mondeq", "monDEQ, multi", "81K", 99.0, 0.1),
        Published(None, "JFB implicit ResNet", "54K", 99.4),
    ),
}

CLAIMS: dict[str, str] = {
    "homoode": "The HomoODE paper (Ding et al. 2023, arXiv 2310.09583) claims accuracies above all of these, with 132 "
    "thousand parameters on CIFAR-10 and SVHN, a faster evaluation than DEQ's, and with the learnable initial point "
    "almost three times fewer evaluations at no loss of accuracy.",
}
"""What a paper claims without a number that we know, by model."""
