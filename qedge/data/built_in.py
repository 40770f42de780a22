"""Data sets that ship with scikit-learn, with declared public ranges, dealt to synthetic clients.

The ranges are declared, not measured: round figures a person of the field would give before seeing a row, so that scaling by
them reveals nothing. The files are read where they lie in the installed package; importing it costs over a second.

Source of the partition: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, section 3 (each client's label mix is drawn from a symmetric Dirichlet). Departure: sizes are lognormal
instead of equal, because real clients differ in size.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qedge.errors import DataNotFound

Range = tuple[float, float]
SIZE_SPREAD = 0.5  # standard deviation of the logarithm of a client's size

_WINE: dict[str, Range] = {
    "alcohol": (10, 16),
    "malic_acid": (0, 6),
    "ash": (1, 4),
    "alcalinity_of_ash": (10, 30),
    "magnesium": (50, 200),
    "total_phenols": (0, 4),
    "flavanoids": (0, 6),
    "nonflavanoid_phenols": (0, 1),
    "proanthocyanins": (0, 4),
    "color_intensity": (0, 15),
    "hue": (0, 2),
    "od280/od315_of_diluted_wines": (1, 4),
    "proline": (200, 1800),
}
# quantity: range of a nucleus' mean, of the standard error, of the worst
_NUCLEUS: dict[str, tuple[Range, Range, Range]] = {
    "radius": ((5, 30), (0, 3), (5, 40)),
    "texture": ((5, 40), (0, 5), (10, 50)),
    "perimeter": ((40, 200), (0, 25), (50, 300)),
    "area": ((100, 3000), (0, 600), (100, 5000)),
    "smoothness": ((0.05, 0.2), (0, 0.05), (0.05, 0.25)),
    "compactness": ((0, 0.5), (0, 0.2), (0, 1.2)),
    "concavity": ((0, 0.5), (0, 0.5), (0, 1.5)),
    "concave points": ((0, 0.25), (0, 0.1), (0, 0.4)),
    "symmetry": ((0.1, 0.4), (0, 0.1), (0.1, 0.7)),
    "fractal dimension": ((0.04, 0.1), (0, 0.05), (0.05, 0.25)),
}
_RANGES: dict[str, dict[str, Range]] = {
    "digits": {f"pixel_{row}_{column}": (0, 16) for row in range(8) for column in range(8)},
    "wine": _WINE,
    "breast-cancer": {
        name: ranges[place]
        for place, pattern in enumerate(("mean {}", "{} error", "worst {}"))
        for name, ranges in ((pattern.format(quantity), three) for quantity, three in _NUCLEUS.items())
    },
}
_LABELS: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "digits": tuple(range(10)),
    "wine": ("class_0", "class_1", "class_2"),
    "breast-cancer": ("malignant", "benign"),
}
_FILES = {"digits": ("digits.csv.gz", 0), "wine": ("wine_data.csv", 1), "breast-cancer": ("breast_cancer.csv", 1)}


@dataclass(frozen=True, eq=False)
class BuiltIn:
    """`features`: float32 [rows, F] unscaled; `labels`: int64 [rows] into `vocabulary`; `ranges`: declared, by feature name."""

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    vocabulary: tuple[str, ...] | tuple[int, ...]
    ranges: dict[str, Range]


def read(name: str) -> BuiltIn:
    """The data set `name`: digits, wine or breast-cancer.

    Raises:
        DataNotFound: scikit-learn, whose files these are, is not installed.
    """
    file, header = _FILES[name]
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataNotFound(f"'{name}' comes with scikit-learn, which is not installed", source=name)
    path = Path(package.origin).parent / "datasets" / "data" / file
    values = np.loadtxt(path, delimiter=",", skiprows=header)
    return BuiltIn(values[:, :-1].astype(np.float32), values[:, -1].astype(np.int64), _LABELS[name], _RANGES[name])


def deal(labels: npt.NDArray[np.int64], clients: int, concentration: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Deals every row to one of `clients`: the client's index for each row, int64 [rows].

    Each client has at least one row where there are enough; its labels follow its own Dirichlet(`concentration`) draw for as
    long as rows of those labels are left.
    """
    classes = int(labels.max()) + 1
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    left = np.array([len(pool) for pool in pools])
    owner = np.empty(len(labels), np.int64)
    for client, size in enumerate(_sizes(len(labels), clients, rng)):
        if size == 0:
            continue
        for label, taken in enumerate(_draw(left, int(size), concentration, rng)):
            owner[pools[label][left[label] - taken : left[label]]] = client
            left[label] -= taken
    return owner


def _sizes(rows: int, clients: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Lognormal sizes that add up to `rows`, at least 1 each where rows suffice."""
    floor = np.zeros(clients, np.int64)
    floor[: min(rows, clients)] = 1
    weight = rng.lognormal(0.0, SIZE_SPREAD, clients)
    return floor + rng.multinomial(rows - int(floor.sum()), weight / weight.sum())


def _draw(left: npt.NDArray[np.int64], size: int, concentration: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How many rows of each label a client takes of what is `left`."""
    mix = np.nan_to_num(rng.dirichlet(np.full(len(left), concentration)))  # extreme concentrations overflow to NaN
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        open_ = left - taken
        weight = np.where(open_ > 0, mix, 0.0)
        if weight.sum() < 1e-12:  # its labels are used up: any that are left
            weight = open_.astype(float)
        taken += np.minimum(rng.multinomial(missing, weight / weight.sum()), open_)
    return taken
