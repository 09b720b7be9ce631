"""Boxes on data sets that a model has never seen, beside the ellipse in the same boxes.

    python benchmarks/study_external_boxes.py --data DIR

The paper's external sets are ISLES, SegThor and TotalSegmentator MRI; ours are those that may be had freely. Whoever
has the paper's runs this with --data on a folder of them and --names "" as the sources.
"""

from accuracy import UNSEEN, mean_by_round, records_of
from study import Row, parser, write

from imis_net.evaluation.floors import EllipseFloor
from imis_net.evaluation.registry import make_segmenter

if __name__ == "__main__":
    own = parser(__doc__)
    own.add_argument("--names", nargs="+", metavar="SOURCE", help="sources in --subset instead of the free sets")
    args = own.parse_args()
    sets = {name: (args.subset, name) for name in args.names} if args.names else UNSEEN
    segmenter, seeds = make_segmenter(args.segmenter, args.weights, args.image_size), range(args.num_seeds)
    rows = []
    for name, (subset, source) in sets.items():
        records = records_of(args.data, subset, source)
        ours, floor = (mean_by_round(s, records, "box", 0, seeds)[0] for s in (segmenter, EllipseFloor()))
        rows.append(Row(name or "all", ours, beside=f"ellipse {floor:.3f}"))
    write("study_external_boxes", rows)
