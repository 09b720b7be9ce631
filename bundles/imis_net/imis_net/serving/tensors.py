"""Names of the tensors of the networks behind the interactive model."""

from __future__ import annotations

IMAGES = "images"  # FP32 [B, 3, S, S], normalised
FEATURES = ("embedding", "fine_8", "fine_4")  # FP32 [B, C, S/16, S/16], then finer maps of encoders that have them
FEATURES_KEY = "features_key"  # INT64 [2], by which a decoder keeps an image's features; with it alone it knows them
TRUNK = ("trunk_0", "trunk_1", "trunk_2", "trunk_3")  # FP32 [B, C, H, W], as many as the encoder's trunk gives
TRUNK_DIGEST = "trunk_digest"  # BYTES [B, 1], whose maps these are
TOKENS = "tokens"  # INT64 [B, 77], or [B] rows of a table of names; [B, 1] of those on the way between models
TEXT = "text"  # FP32 [B, C]
POINT_COORDS = "point_coords"  # FP32 [B, N, 2], model frame: clicks and corners of boxes
POINT_LABELS = "point_labels"  # INT64 [B, N], kinds of points
LOW_RES_MASKS = "low_res_masks"  # FP32 [B, 1, S/4, S/4]
PREDICTIONS = ("mask_logits", "iou_predictions", "semantic_embeddings")  # FP32 [B, 4, S/4, S/4], [B, 4], [B, 4, D]
