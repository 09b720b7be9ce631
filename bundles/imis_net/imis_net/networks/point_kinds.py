"""What a point of a prompt can be. Source: Segment Anything's labels, which its published embeddings follow."""

NOT_A_POINT = -1
BACKGROUND = 0
FOREGROUND = 1
TOP_LEFT = 2
BOTTOM_RIGHT = 3
