"""The parts of the MONAI Label app. No tensor code: that is ``imis_net``."""
