"""Visual codebooks: an image becomes one id for each patch, which BEiT and CAE predict.

`TOKENIZERS` maps each `objective.tokenizer.name` of a config to its class.
"""

TOKENIZERS = {
    "kmeans": "occinv.models.tokenizers.kmeans:KMeans",
    "vq": "occinv.models.tokenizers.vq:VQ",
    "dalle": "occinv.models.tokenizers.dalle:Dalle",
}
