"""The version of this package; also where it runs from its sources, without being installed."""

VERSION = "0.2.0"
