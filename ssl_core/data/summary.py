"""A one-line summary of a data set, so that a user sees whether it was read as intended."""

import torch

from astra_gym.ssl_core.data.image_set import Split

MANY = 6
"""Largest number of classes that are all named; if there are more, only the smallest and the largest are."""
LONGEST = 30
"""Number of characters shown of a class's name."""


def summary(data: Split) -> str:
    """Summarize images, classes and what was left out: `80 training and 20 test images; 2 classes ...`.

    Each class is named with its number of training images; of many classes, only the smallest and the largest.
    """
    train, test = data.train, data.test
    parts = [f"{len(train):,} training and {len(test):,} test images"]
    if train.labels is not None and train.classes:
        counts = torch.bincount(train.labels, minlength=len(train.classes)).tolist()
        names = [_shown(name) for name in train.classes]
        if len(names) > MANY:
            low, high = min(counts), max(counts)
            least, most = names[counts.index(low)], names[counts.index(high)]
            span = f"from {low:,} training images ({least}) to {high:,} ({most})"
            parts.append(f"{len(names):,} classes, {span if low < high else f'each of {low:,} training images'}")
        else:
            listed = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
            parts.append(f"{len(names)} classes of training images ({listed})")
        if test.labels is not None:
            tested = torch.bincount(test.labels, minlength=len(names)).tolist()
            if missing := [name for name, count in zip(names, tested, strict=True) if not count]:
                more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
                parts.append(f"no test image of {', '.join(missing[:3])}{more}")
    return "; ".join([*parts, *data.notes])


def _shown(name: str) -> str:
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."
