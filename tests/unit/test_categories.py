"""The category table."""

from imis_net.categories import display_name, load_categories, nearest_names, normalised


def test_counts_are_the_papers():
    """Breaks if a target or a label is lost: 204 targets, 238 data-set labels."""
    categories = load_categories()
    labels = [label for c in categories for label in c.labels]
    assert len({c.name for c in categories}) == len(categories) == 204
    assert len(set(labels)) == len(labels) == 238


def test_label_leads_to_its_name_and_other_text_stays():
    """Breaks if free text is mapped to something else, or a label key is prompted as it is."""
    assert normalised(display_name("kidney_right")) == "right kidney"
    assert display_name("a shadow near the liver") == "a shadow near the liver"


def test_nearest_names_come_best_first():
    """Breaks if suggestions are in the table's order."""
    assert nearest_names("splen", ["aorta", "liver", "spleen"])[0] == "spleen"
