"""Other things made to look like a ``Segmenter``."""
