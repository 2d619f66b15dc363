"""A layer's shape on a command line."""

import argparse


def given_shape(text: str) -> tuple[int, ...]:
    """``T,N,C,*`` as numbers."""
    numbers = tuple(int(number) if number.isdecimal() else 0 for number in text.split(","))
    if len(numbers) < 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be three numbers or more, all above 0: T,N,C,*, got {text!r}")
    return numbers
