"""Where in a target the first click falls: anywhere, or in the share of pixels nearest to the centroid.

python benchmarks/study_click_position.py --data DIR
"""

from accuracy import mean_by_round
from study import Row, given, parser, write

PAPER = {1.0: 0.867, 0.75: 0.881, 0.5: 0.884, 0.25: 0.886, 0.05: 0.886}

if __name__ == "__main__":
    segmenter, records, seeds = given(parser(__doc__).parse_args())
    write(
        "study_click_position",
        [
            Row(
                f"click within the {share:.0%} of pixels nearest to the centroid",
                mean_by_round(segmenter, records, "click", 0, seeds, closest_fraction=share)[0],
                paper,
            )
            for share, paper in PAPER.items()
        ],
    )
