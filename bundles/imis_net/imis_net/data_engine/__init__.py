"""Dense interactive masks from any data set, as IMed-361M was made.

source -> ``ingest`` (images and named regions) -> ``candidates`` (a segmenter asked on a grid) -> ``quality_control``
(the ground truth decides) -> ``layout`` (files and one record per image) -> ``assembly`` (dataset.json, index, report).
``pipeline`` joins them; ``configs/data_engine.yaml`` owns every number.
"""
