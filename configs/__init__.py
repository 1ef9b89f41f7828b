"""The configs of occinv: one file for each experiment, with variants for smaller data.

The installed package has these files as `occinv.configs`. A config of your own imports one, changes
it, and may be anywhere:

    from occinv.configs import mae

    VARIANTS = mae.VARIANTS

    def get_config(variant="imagenet"):
        config = mae.get_config(variant)
        config.objective.mask_ratio = 0.6
        return config
"""
