"""IMIS-Net: interactive medical image segmentation by clicks, boxes, text and their combinations.

Encode an image once, then predict as many masks from it as there are prompts; see ``segmenter`` for the contract and
``networks.build`` for the models. Paper: arXiv 2411.12814.
"""

__version__ = "0.1.0"
