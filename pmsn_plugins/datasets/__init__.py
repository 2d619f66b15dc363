"""Data sets as sequences, see :class:`DataSource`. Downloads happen on request, by the libraries' means."""

from .images import cifar_source, columns, digits_source, imagenet_source, mnist_source, pixels, repeated
from .source import DataSource, View, check_labels, time_first, validation_split
from .speech_commands import SpeechCommands12, log_mel, speech_commands_source
from .spoken import SpokenEvents, check_binning, spoken_source
from .synthetic import SyntheticSamples, synthetic_source

__all__ = [
    "DataSource",
    "SpeechCommands12",
    "SpokenEvents",
    "SyntheticSamples",
    "View",
    "check_binning",
    "check_labels",
    "cifar_source",
    "columns",
    "digits_source",
    "imagenet_source",
    "log_mel",
    "mnist_source",
    "pixels",
    "repeated",
    "speech_commands_source",
    "spoken_source",
    "synthetic_source",
    "time_first",
    "validation_split",
]
